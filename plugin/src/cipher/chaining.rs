//! The chain of whole blocks in CBC: NIST SP 800-38A, section 6.2.
//!
//! The `cbc` crate has the same, but reads each block from memory that it has just written, which
//! costs some cycles for each, and decrypts block by block what makes no whole batch.

use core::slice;

use aes::cipher::{
    BlockCipherDecBackend, BlockCipherDecClosure, BlockCipherEncBackend, BlockCipherEncClosure,
    BlockSizeUser, ParBlocks, consts::U16, inout::InOutBuf,
};

use super::aes_block::{AesBlock, xor};

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
}

impl BlockSizeUser for DecryptChain<'_> {
    type BlockSize = U16;
}

impl BlockCipherDecClosure for DecryptChain<'_> {
    #[inline(always)]
    fn call<B: BlockCipherDecBackend<BlockSize = U16>>(self, backend: &B) {
        let (batches, rest) = self.blocks.into_chunks::<B::ParBlocksSize>();
        for batch in batches {
            let mut plaintext = ParBlocks::<B>::default();
            backend.decrypt_par_blocks((batch.get_in(), &mut plaintext).into());
            unchain(self.previous, &plaintext, batch.into_buf());
        }
        let mut plaintext = ParBlocks::<B>::default();
        let (blocks, unneeded) = plaintext.split_at_mut(rest.len());
        blocks.copy_from_slice(rest.get_in());
        // The processor is about as long at work on a whole batch as on half of it block by block.
        if blocks.len() >= unneeded.len() {
            backend.decrypt_par_blocks_inplace(&mut plaintext);
        } else {
            backend.decrypt_tail_blocks_inplace(blocks);
        }
        unchain(self.previous, &plaintext, rest);
    }
}

/// XORs each decrypted block with the ciphertext before it.
#[inline(always)]
fn unchain(
    previous: &mut AesBlock,
    decrypted: &[AesBlock],
    ciphertext: InOutBuf<'_, '_, AesBlock>,
) {
    let mut before = *previous;
    for (mut block, decrypted) in ciphertext.into_iter().zip(decrypted) {
        // Read first: the plaintext may go to the same memory.
        let next = block.clone_in();
        xor(slice::from_mut(&mut before), slice::from_ref(decrypted));
        *block.get_out() = before;
        before = next;
    }
    *previous = before;
}
