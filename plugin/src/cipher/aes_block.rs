//! AES with a key length known at run time only, for the generic modes.

use aes::cipher::{
    Array, BlockCipherDecBackend, BlockCipherDecClosure, BlockCipherDecrypt, BlockCipherEncBackend,
    BlockCipherEncClosure, BlockCipherEncrypt, BlockSizeUser, KeyInit, ParBlocks, array::ArraySize,
    consts::U16, typenum::Unsigned,
};
use aes::{Aes128Dec, Aes128Enc, Aes192Dec, Aes192Enc, Aes256Dec, Aes256Enc};

use super::{Block, CipherError};

/// A [`Block`] as the `aes` crate has it.
pub type AesBlock = Array<u8, U16>;

macro_rules! any_length {
    ($(#[$doc:meta])* $name:ident, $a:ty, $b:ty, $c:ty, $trait:ident, $method:ident, $closure:ident) => {
        $(#[$doc])*
        pub enum $name {
            /// 16 bytes.
            Aes128($a),
            /// 24 bytes.
            Aes192($b),
            /// 32 bytes.
            Aes256($c),
        }

        impl $name {
            /// Expands `key` of 16, 24 or 32 bytes and gives the result to `place`, which puts it
            /// where it stays: copying what has just been written takes as long as a block or two.
            #[inline(always)]
            pub fn expand(key: &[u8], place: impl FnOnce(Self)) -> Result<(), CipherError> {
                let wrong_length = |_| CipherError::KeyLength(key.len());
                match key.len() {
                    16 => place(Self::Aes128(<$a>::new_from_slice(key).map_err(wrong_length)?)),
                    24 => place(Self::Aes192(<$b>::new_from_slice(key).map_err(wrong_length)?)),
                    32 => place(Self::Aes256(<$c>::new_from_slice(key).map_err(wrong_length)?)),
                    length => return Err(CipherError::KeyLength(length)),
                }
                Ok(())
            }
        }

        impl BlockSizeUser for $name {
            type BlockSize = U16;
        }

        impl $trait for $name {
            #[inline]
            fn $method(&self, f: impl $closure<BlockSize = U16>) {
                match self {
                    Self::Aes128(aes) => aes.$method(f),
                    Self::Aes192(aes) => aes.$method(f),
                    Self::Aes256(aes) => aes.$method(f),
                }
            }
        }
    };
}

any_length!(
    /// AES encryption of blocks.
    AesEncrypt, Aes128Enc, Aes192Enc, Aes256Enc,
    BlockCipherEncrypt, encrypt_with_backend, BlockCipherEncClosure
);
any_length!(
    /// AES decryption of blocks.
    AesDecrypt, Aes128Dec, Aes192Dec, Aes256Dec,
    BlockCipherDecrypt, decrypt_with_backend, BlockCipherDecClosure
);

impl AesEncrypt {
    /// Encrypts one block.
    pub fn block(&self, block: &Block) -> Block {
        let mut result = (*block).into();
        self.encrypt_block(&mut result);
        result.into()
    }
}

/// Encrypts fewer blocks than the backend takes at once.
///
/// The backend gets as many as it takes, and the compiler leaves out those of which nothing is
/// used. By itself the backend would encrypt them block by block.
#[inline(always)]
pub fn encrypt_some<B, N>(backend: &B, blocks: &mut Array<AesBlock, N>)
where
    B: BlockCipherEncBackend<BlockSize = U16>,
    N: ArraySize,
{
    for some in blocks.chunks_mut(B::ParBlocksSize::USIZE) {
        let mut all = ParBlocks::<B>::default();
        copy(some, &mut all);
        backend.encrypt_par_blocks_inplace(&mut all);
        copy(&all, some);
    }
}

/// Decrypts fewer blocks than the backend takes at once, as [`encrypt_some`] encrypts them.
#[inline(always)]
pub fn decrypt_some<B, N>(backend: &B, from: &Array<AesBlock, N>, to: &mut Array<AesBlock, N>)
where
    B: BlockCipherDecBackend<BlockSize = U16>,
    N: ArraySize,
{
    let size = B::ParBlocksSize::USIZE;
    for (from, to) in from.chunks(size).zip(to.chunks_mut(size)) {
        let mut all = ParBlocks::<B>::default();
        copy(from, &mut all);
        backend.decrypt_par_blocks_inplace(&mut all);
        copy(&all, to);
    }
}

#[inline(always)]
fn copy(from: &[AesBlock], to: &mut [AesBlock]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = *from;
    }
}

/// XORs blocks with as many others.
#[inline(always)]
pub fn xor(blocks: &mut [AesBlock], others: &[AesBlock]) {
    let bytes = Array::slice_as_flattened_mut(blocks);
    for (byte, other) in bytes.iter_mut().zip(Array::slice_as_flattened(others)) {
        *byte ^= other;
    }
}
