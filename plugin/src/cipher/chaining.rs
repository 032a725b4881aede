//! The chain of whole blocks in CBC: NIST SP 800-38A, section 6.2.
//!
//! The `cbc` crate has the same, but always works as if the plaintext went to the memory of the
//! ciphertext, which takes longer where the processor has VAES.

use core::slice;

use aes::cipher::{
    Array, BlockCipherDecBackend, BlockCipherDecClosure, BlockCipherEncBackend,
    BlockCipherEncClosure, BlockSizeUser, ParBlocks,
    array::ArraySize,
    consts::{U1, U8, U16, U32},
    inout::InOutBuf,
};

use super::aes_block::{AesBlock, decrypt_some, xor};

/// Encrypts blocks, the first of them after `previous`.
pub struct EncryptChain<'a> {
    /// The ciphertext before the blocks; afterwards, that of the last one.
    pub previous: &'a mut AesBlock,
    /// The blocks.
    pub blocks: InOutBuf<'a, 'a, AesBlock>,
}

impl BlockSizeUser for EncryptChain<'_> {
    type BlockSize = U16;
}

impl BlockCipherEncClosure for EncryptChain<'_> {
    #[inline(always)]
    fn call<B: BlockCipherEncBackend<BlockSize = U16>>(self, backend: &B) {
        let mut previous = *self.previous;
        for mut block in self.blocks {
            xor(
                slice::from_mut(&mut previous),
                slice::from_ref(block.get_in()),
            );
            backend.encrypt_block_inplace(&mut previous);
            *block.get_out() = previous;
        }
        *self.previous = previous;
    }
}

/// Decrypts blocks, the first of them after `previous`.
pub struct DecryptChain<'a> {
    /// The ciphertext before the blocks; afterwards, that of the last one.
    pub previous: &'a mut AesBlock,
    /// The blocks.
    pub blocks: InOutBuf<'a, 'a, AesBlock>,
    /// The same ciphertext, where the plaintext goes to memory of its own: it needs no second look
    /// block by block then.
    pub ciphertext: Option<&'a [AesBlock]>,
}

impl BlockSizeUser for DecryptChain<'_> {
    type BlockSize = U16;
}

impl BlockCipherDecClosure for DecryptChain<'_> {
    #[inline(always)]
    fn call<B: BlockCipherDecBackend<BlockSize = U16>>(self, backend: &B) {
        let mut links = Links {
            previous: self.previous,
            ciphertext: self.ciphertext,
        };
        let rest = links.decrypt(self.blocks, |from, to: &mut ParBlocks<B>| {
            backend.decrypt_par_blocks((from, to).into());
        });
        let rest = links.decrypt::<U32>(rest, |from, to| decrypt_some(backend, from, to));
        let rest = links.decrypt::<U8>(rest, |from, to| decrypt_some(backend, from, to));
        links.decrypt::<U1>(rest, |Array([from]), Array([to])| {
            backend.decrypt_block((from, to).into());
        });
    }
}

/// What the blocks to come are XORed with once they are decrypted.
struct Links<'a> {
    /// As in [`DecryptChain`].
    previous: &'a mut AesBlock,
    /// As in [`DecryptChain`], as much as is left of it.
    ciphertext: Option<&'a [AesBlock]>,
}

impl Links<'_> {
    /// Decrypts as much as makes batches of `N` blocks, and returns the rest.
    #[inline(always)]
    fn decrypt<'b, N: ArraySize>(
        &mut self,
        blocks: InOutBuf<'b, 'b, AesBlock>,
        decrypt: impl Fn(&Array<AesBlock, N>, &mut Array<AesBlock, N>),
    ) -> InOutBuf<'b, 'b, AesBlock> {
        let (batches, rest) = blocks.into_chunks::<N>();
        let mut decrypted = Array::default();
        for mut batch in batches {
            decrypt(batch.get_in(), &mut decrypted);
            match self
                .ciphertext
                .and_then(|all| all.split_at_checked(N::USIZE))
            {
                Some((ciphertext, rest)) => {
                    self.ciphertext = Some(rest);
                    unchain(self.previous, &decrypted, ciphertext, batch.get_out());
                }
                None => unchain_in_place(self.previous, &decrypted, batch.into_buf()),
            }
        }
        rest
    }
}

/// XORs each decrypted block with the ciphertext before it.
#[inline(always)]
fn unchain(
    previous: &mut AesBlock,
    decrypted: &[AesBlock],
    ciphertext: &[AesBlock],
    plaintext: &mut [AesBlock],
) {
    let (Some((first, others)), Some((last, before))) =
        (plaintext.split_first_mut(), ciphertext.split_last())
    else {
        return;
    };
    let (decrypted_first, decrypted_others) = decrypted.split_at(1);
    first.clone_from(previous);
    xor(slice::from_mut(first), decrypted_first);
    let bytes = Array::slice_as_flattened_mut(others).iter_mut();
    let decrypted = Array::slice_as_flattened(decrypted_others);
    for ((byte, decrypted), before) in bytes.zip(decrypted).zip(Array::slice_as_flattened(before)) {
        *byte = decrypted ^ before;
    }
    *previous = *last;
}

/// The same where the plaintext may go to the memory of the ciphertext: each block is read before
/// it is written.
#[inline(always)]
fn unchain_in_place(
    previous: &mut AesBlock,
    decrypted: &[AesBlock],
    ciphertext: InOutBuf<'_, '_, AesBlock>,
) {
    let mut before = *previous;
    for (mut block, decrypted) in ciphertext.into_iter().zip(decrypted) {
        let next = block.clone_in();
        xor(slice::from_mut(&mut before), slice::from_ref(decrypted));
        *block.get_out() = before;
        before = next;
    }
    *previous = before;
}
