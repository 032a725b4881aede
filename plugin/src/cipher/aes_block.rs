//! AES whose key length is known only at run time, in a form that the modes of `cbc` and `ctr` take.

use aes::cipher::{
    Array, BlockCipherDecClosure, BlockCipherDecrypt, BlockCipherEncBackend, BlockCipherEncClosure,
    BlockCipherEncrypt, BlockSizeUser, KeyInit, ParBlocks, ParBlocksSizeUser,
    array::ArraySize,
    consts::{U4, U16},
    inout::InOut,
};
use aes::{Aes128, Aes128Enc, Aes192, Aes192Enc, Aes256, Aes256Enc};

use super::{Block, CipherError};

/// One block, as the crate `aes` takes it.
pub type AesBlock = Array<u8, U16>;

/// A block cipher for keys of 16, 24 or 32 bytes.
pub enum AnyAes<A, B, C> {
    /// 16 bytes.
    Aes128(A),
    /// 24 bytes.
    Aes192(B),
    /// 32 bytes.
    Aes256(C),
}

/// AES that only encrypts: its key is expanded fastest.
pub type AesEncrypt = AnyAes<Aes128Enc, Aes192Enc, Aes256Enc>;
/// AES that encrypts and decrypts.
pub type Aes = AnyAes<Aes128, Aes192, Aes256>;

impl<A: KeyInit, B: KeyInit, C: KeyInit> AnyAes<A, B, C> {
    /// Expands `key` (16, 24 or 32 bytes) and passes the result to `place`, which puts it where it stays:
    /// moving an expanded key takes as long as encrypting a block or two.
    #[inline(always)]
    pub fn expand(key: &[u8], place: impl FnOnce(Self)) -> Result<(), CipherError> {
        let wrong_length = |_| CipherError::KeyLength(key.len());
        match key.len() {
            16 => place(Self::Aes128(A::new_from_slice(key).map_err(wrong_length)?)),
            24 => place(Self::Aes192(B::new_from_slice(key).map_err(wrong_length)?)),
            _ => place(Self::Aes256(C::new_from_slice(key).map_err(wrong_length)?)),
        }
        Ok(())
    }
}

impl<A, B, C> BlockSizeUser for AnyAes<A, B, C> {
    type BlockSize = U16;
}

impl<A, B, C> BlockCipherEncrypt for AnyAes<A, B, C>
where
    A: BlockCipherEncrypt<BlockSize = U16>,
    B: BlockCipherEncrypt<BlockSize = U16>,
    C: BlockCipherEncrypt<BlockSize = U16>,
{
    #[inline]
    fn encrypt_with_backend(&self, f: impl BlockCipherEncClosure<BlockSize = U16>) {
        match self {
            Self::Aes128(aes) => aes.encrypt_with_backend(FourAtOnce(f)),
            Self::Aes192(aes) => aes.encrypt_with_backend(FourAtOnce(f)),
            Self::Aes256(aes) => aes.encrypt_with_backend(FourAtOnce(f)),
        }
    }
}

impl<A, B, C> BlockCipherDecrypt for AnyAes<A, B, C>
where
    A: BlockCipherDecrypt<BlockSize = U16>,
    B: BlockCipherDecrypt<BlockSize = U16>,
    C: BlockCipherDecrypt<BlockSize = U16>,
{
    #[inline]
    fn decrypt_with_backend(&self, f: impl BlockCipherDecClosure<BlockSize = U16>) {
        match self {
            Self::Aes128(aes) => aes.decrypt_with_backend(f),
            Self::Aes192(aes) => aes.decrypt_with_backend(f),
            Self::Aes256(aes) => aes.decrypt_with_backend(f),
        }
    }
}

/// Lets a mode encrypt four blocks at once, whatever the processor takes: one register of AVX-512.
///
/// By itself `aes` takes up to 64. `ctr` then makes as many counter blocks in memory, and encrypts what is left one by
/// one. Four stay in registers, and the processor overlaps them with the next four.
struct FourAtOnce<T>(T);

impl<T> BlockSizeUser for FourAtOnce<T> {
    type BlockSize = U16;
}

impl<T> ParBlocksSizeUser for FourAtOnce<T> {
    type ParBlocksSize = U4;
}

impl<F: BlockCipherEncClosure<BlockSize = U16>> BlockCipherEncClosure for FourAtOnce<F> {
    #[inline(always)]
    fn call<B: BlockCipherEncBackend<BlockSize = U16>>(self, backend: &B) {
        self.0.call(&FourAtOnce(backend));
    }
}

impl<B: BlockCipherEncBackend<BlockSize = U16>> BlockCipherEncBackend for FourAtOnce<&B> {
    #[inline(always)]
    fn encrypt_block(&self, block: InOut<'_, '_, AesBlock>) {
        self.0.encrypt_block(block);
    }

    #[inline(always)]
    fn encrypt_par_blocks(&self, blocks: InOut<'_, '_, ParBlocks<Self>>) {
        in_batches(blocks, |batch: &mut ParBlocks<B>| {
            self.0.encrypt_par_blocks_inplace(batch);
        });
    }
}

/// Processes a few blocks in batches of `N`, which may be more. What a batch would do for blocks that are not there,
/// the compiler leaves out.
#[inline(always)]
pub fn in_batches<Few: ArraySize, N: ArraySize>(
    mut blocks: InOut<'_, '_, Array<AesBlock, Few>>,
    process: impl Fn(&mut Array<AesBlock, N>),
) {
    let mut few = blocks.clone_in();
    for some in few.chunks_mut(N::USIZE) {
        let mut batch = Array::<AesBlock, N>::default();
        let (first, _) = batch.split_at_mut(some.len());
        first.copy_from_slice(some);
        process(&mut batch);
        let (first, _) = batch.split_at(some.len());
        some.copy_from_slice(first);
    }
    *blocks.get_out() = few;
}

/// Encrypts one block.
#[inline]
pub fn encrypt_block(aes: &impl BlockCipherEncrypt<BlockSize = U16>, block: &Block) -> Block {
    let mut result = (*block).into();
    aes.encrypt_block(&mut result);
    result.into()
}
