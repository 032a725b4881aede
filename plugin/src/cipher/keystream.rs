//! The keystream of counter mode, for CTR and GCM: NIST SP 800-38A, section 6.5.
//!
//! Works on as many blocks at once as the processor takes, and makes their counter blocks without
//! carrying, so that those too are made several at once. The `ctr` crate makes one after the other,
//! which takes longer than to encrypt them where the processor has VAES.

use aes::cipher::{
    Array, BlockCipherEncBackend, BlockCipherEncClosure, BlockCipherEncrypt, BlockSizeUser,
    ParBlocks,
    array::ArraySize,
    consts::{U4, U8, U16, U32},
    inout::InOutBuf,
};

use super::aes_block::{AesBlock, AesEncrypt, encrypt_some};
use super::{BLOCK_BYTES, Block};

/// How much of a counter block counts, at its end.
#[derive(Clone, Copy)]
pub enum CounterWidth {
    /// All of it, as in CTR.
    Bits128,
    /// The last four bytes, as in GCM.
    Bits32,
}

/// The part of a keystream that has not been used yet.
pub struct Keystream {
    aes: AesEncrypt,
    counter: Counter,
    /// The block of keystream that was made last.
    block: Block,
    /// How much of it is left, at its end.
    left_bytes: usize,
}

impl Keystream {
    /// Starts with AES of `first`.
    #[inline(always)]
    pub fn new(aes: AesEncrypt, first: &Block, width: CounterWidth) -> Self {
        Self {
            aes,
            counter: Counter {
                next: u128::from_be_bytes(*first),
                width,
            },
            block: [0; BLOCK_BYTES],
            left_bytes: 0,
        }
    }

    /// XORs the data with the next bytes of the keystream.
    #[inline]
    pub fn apply(&mut self, data: InOutBuf<'_, '_, u8>) {
        let head_bytes = self.left_bytes.min(data.len());
        let (mut head, rest) = data.split_at(head_bytes);
        let (_, left) = self.block.split_at(BLOCK_BYTES - self.left_bytes);
        let (left, _) = left.split_at(head_bytes);
        head.xor_in2out(left);
        self.left_bytes -= head_bytes;
        if !rest.is_empty() {
            self.left_bytes = rest.len().next_multiple_of(BLOCK_BYTES) - rest.len();
            self.aes.encrypt_with_backend(Apply {
                counter: &mut self.counter,
                data: rest,
                block: &mut self.block,
            });
        }
    }
}

/// Encrypts counter blocks; what is left of the last one goes to `block`.
struct Apply<'a> {
    counter: &'a mut Counter,
    data: InOutBuf<'a, 'a, u8>,
    block: &'a mut Block,
}

impl BlockSizeUser for Apply<'_> {
    type BlockSize = U16;
}

impl BlockCipherEncClosure for Apply<'_> {
    #[inline(always)]
    fn call<B: BlockCipherEncBackend<BlockSize = U16>>(self, backend: &B) {
        let Self {
            counter,
            data,
            block,
        } = self;
        let (blocks, mut partial) = data.into_chunks();
        let rest = counter.mix_batches(blocks, |blocks: &mut ParBlocks<B>| {
            backend.encrypt_par_blocks_inplace(blocks);
        });
        let rest = counter.mix_batches::<U32>(rest, |some| encrypt_some(backend, some));
        let rest = counter.mix_batches::<U8>(rest, |some| encrypt_some(backend, some));
        for mut data in rest {
            data.xor_in2out(&counter.next_encrypted(backend));
        }
        if !partial.is_empty() {
            *block = counter.next_encrypted(backend).into();
            let (used, _) = block.split_at(partial.len());
            partial.xor_in2out(used);
        }
    }
}

/// The counter block to be encrypted next.
struct Counter {
    next: u128,
    width: CounterWidth,
}

impl Counter {
    /// The counter block after `count` more.
    #[inline(always)]
    fn plus(&self, count: u128) -> u128 {
        match self.width {
            CounterWidth::Bits128 => self.next.wrapping_add(count),
            CounterWidth::Bits32 => {
                let counting = (self.next as u32).wrapping_add(count as u32);
                (self.next & !u128::from(u32::MAX)) | u128::from(counting)
            }
        }
    }

    /// The next counter blocks, 256 at most.
    ///
    /// The last bytes of so few blocks are different, and their other bytes are either those of the
    /// first block or, from where the last byte begins again at 0, those of the block 256 later. So
    /// nothing is carried from one byte or block to the next, which the compiler can do several
    /// blocks at once.
    #[inline(always)]
    fn next_blocks<N: ArraySize>(&self) -> Array<AesBlock, N> {
        let first = halves(self.next);
        let mut blocks = Array::from_fn(|position| block_after(first, position));
        let begins_again = 256 - (self.next & 0xff) as usize;
        if begins_again < N::USIZE {
            let later = halves(self.plus(256));
            for (position, block) in blocks.iter_mut().enumerate().skip(begins_again) {
                *block = block_after(later, position);
            }
        }
        blocks
    }

    /// XORs with the keystream as much of the data as makes batches of `N` blocks, and returns the
    /// rest.
    #[inline(always)]
    fn mix_batches<'a, N: ArraySize>(
        &mut self,
        data: InOutBuf<'a, 'a, AesBlock>,
        encrypt: impl Fn(&mut Array<AesBlock, N>),
    ) -> InOutBuf<'a, 'a, AesBlock> {
        let (batches, rest) = data.into_chunks::<N>();
        for batch in batches {
            let mut keystream = self.next_blocks::<N>();
            self.advance(keystream.len());
            encrypt(&mut keystream);
            mix(batch.into_buf(), &keystream);
        }
        rest
    }

    /// The next block of keystream.
    #[inline(always)]
    fn next_encrypted<B: BlockCipherEncBackend<BlockSize = U16>>(
        &mut self,
        backend: &B,
    ) -> AesBlock {
        let mut block = self.next.to_be_bytes().into();
        self.advance(1);
        backend.encrypt_block_inplace(&mut block);
        block
    }

    #[inline(always)]
    fn advance(&mut self, blocks: usize) {
        self.next = self.plus(blocks as u128);
    }
}

/// Both halves of a counter block, as they lie in memory.
#[inline(always)]
fn halves(counter: u128) -> (u64, u64) {
    let block = u128::from_le_bytes(counter.to_be_bytes());
    (block as u64, (block >> 64) as u64)
}

/// The counter block whose last byte is greater by `position`.
#[inline(always)]
fn block_after((start, end): (u64, u64), position: usize) -> AesBlock {
    let end = end.wrapping_add((position as u64) << 56);
    let mut block = AesBlock::default();
    let (block_start, block_end) = block.split_at_mut(BLOCK_BYTES / 2);
    block_start.copy_from_slice(&start.to_le_bytes());
    block_end.copy_from_slice(&end.to_le_bytes());
    block
}

/// XORs the data with as much of the keystream.
#[inline(always)]
fn mix(data: InOutBuf<'_, '_, AesBlock>, keystream: &[AesBlock]) {
    let (fours, rest) = data.into_chunks::<U4>();
    let (keys, _) = Array::<AesBlock, U4>::slice_as_chunks(keystream);
    let done = 4 * fours.len();
    for (mut four, keys) in fours.into_iter().zip(keys) {
        four.xor_in2out(keys);
    }
    for (mut one, key) in rest.into_iter().zip(keystream.iter().skip(done)) {
        one.xor_in2out(key);
    }
}
