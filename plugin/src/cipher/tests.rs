//! Compares the ciphers, piece by piece, with OpenSSL used as in the server's `my_crypt.cc`.

use openssl::symm::{Cipher as OpenSslCipher, Crypter, Mode};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::Direction::{Decrypt, Encrypt};
use super::Padding::{Padded, Unpadded};
use super::*;

fn init(
    algorithm: Algorithm,
    direction: Direction,
    padding: Padding,
    key: &[u8],
    iv: &[u8],
) -> Result<Cipher, CipherError> {
    let mut place = None;
    Cipher::init(&mut place, algorithm, direction, padding, key, iv)?;
    Ok(place.unwrap())
}

/// OpenSSL, used as the server uses it.
struct Reference {
    crypter: Crypter,
    kind: Kind,
    direction: Direction,
    key: Vec<u8>,
    iv: Block,
    tail: Vec<u8>,
}

#[derive(PartialEq)]
enum Kind {
    CbcPadded,
    CbcNoPad,
    Ctr,
    Gcm,
}

fn openssl_cipher(kind: &Kind, key_bytes: usize) -> OpenSslCipher {
    match (kind, key_bytes) {
        (Kind::Ctr, 16) => OpenSslCipher::aes_128_ctr(),
        (Kind::Ctr, 24) => OpenSslCipher::aes_192_ctr(),
        (Kind::Ctr, _) => OpenSslCipher::aes_256_ctr(),
        (Kind::Gcm, 16) => OpenSslCipher::aes_128_gcm(),
        (Kind::Gcm, 24) => OpenSslCipher::aes_192_gcm(),
        (Kind::Gcm, _) => OpenSslCipher::aes_256_gcm(),
        (_, 16) => OpenSslCipher::aes_128_cbc(),
        (_, 24) => OpenSslCipher::aes_192_cbc(),
        (_, _) => OpenSslCipher::aes_256_cbc(),
    }
}

impl Reference {
    fn new(
        algorithm: Algorithm,
        direction: Direction,
        padding: Padding,
        key: &[u8],
        iv: &Block,
    ) -> Self {
        let kind = match (algorithm, padding) {
            (Algorithm::AesCbc, Padding::Padded) => Kind::CbcPadded,
            (Algorithm::AesCbc, Padding::Unpadded) => Kind::CbcNoPad,
            (Algorithm::AesCtr, Padding::Padded) => Kind::Gcm,
            (Algorithm::AesCtr, Padding::Unpadded) => Kind::Ctr,
        };
        let mode = match direction {
            Direction::Encrypt => Mode::Encrypt,
            Direction::Decrypt => Mode::Decrypt,
        };
        let used_iv = match kind {
            Kind::Gcm => &iv[..12],
            _ => &iv[..],
        };
        let cipher = openssl_cipher(&kind, key.len());
        let mut crypter = Crypter::new(cipher, mode, key, Some(used_iv)).unwrap();
        match kind {
            Kind::CbcNoPad => crypter.pad(false),
            Kind::Gcm => crypter.aad_update(&iv[12..]).unwrap(),
            _ => {}
        }
        Self {
            crypter,
            kind,
            direction,
            key: key.to_vec(),
            iv: *iv,
            tail: Vec::new(),
        }
    }

    fn update(&mut self, mut data: &[u8]) -> Vec<u8> {
        if self.kind == Kind::Gcm && self.direction == Decrypt {
            let (ciphertext, tag) = data.split_last_chunk::<BLOCK_BYTES>().unwrap();
            self.crypter.set_tag(tag).unwrap();
            data = ciphertext;
        }
        self.tail.extend(data);
        let whole = self.tail.len() / BLOCK_BYTES * BLOCK_BYTES;
        self.tail.drain(..whole);
        let mut result = vec![0; data.len() + BLOCK_BYTES];
        let length = self.crypter.update(data, &mut result).unwrap();
        result.truncate(length);
        result
    }

    fn finish(mut self) -> Result<Vec<u8>, CipherError> {
        if self.kind == Kind::CbcNoPad {
            let mut ecb =
                Crypter::new(ecb(self.key.len()), Mode::Encrypt, &self.key, None).unwrap();
            let mut mask = [0; 2 * BLOCK_BYTES];
            ecb.update(&self.iv, &mut mask).unwrap();
            return Ok(self
                .tail
                .iter()
                .zip(mask)
                .map(|(byte, mask)| byte ^ mask)
                .collect());
        }
        let mut result = vec![0; BLOCK_BYTES];
        let length = self
            .crypter
            .finalize(&mut result)
            .map_err(|_| CipherError::BadData)?;
        result.truncate(length);
        if self.kind == Kind::Gcm && self.direction == Encrypt {
            result.resize(BLOCK_BYTES, 0);
            self.crypter.get_tag(&mut result).unwrap();
        }
        Ok(result)
    }

    fn all(mut self, data: &[u8]) -> Vec<u8> {
        let mut result = self.update(data);
        result.extend(self.finish().unwrap());
        result
    }
}

fn ecb(key_bytes: usize) -> OpenSslCipher {
    match key_bytes {
        16 => OpenSslCipher::aes_128_ecb(),
        24 => OpenSslCipher::aes_192_ecb(),
        _ => OpenSslCipher::aes_256_ecb(),
    }
}

/// How the source and the destination of an update lie in memory.
#[derive(Debug, Clone, Copy)]
enum Place {
    Separate,
    Same,
    DestinationAfter(usize),
    DestinationBefore(usize),
}

fn update(cipher: &mut Cipher, data: &[u8], place: Place) -> Result<Vec<u8>, CipherError> {
    let length = cipher.update_bytes(data.len());
    let (from, to) = match place {
        Place::Separate => {
            let mut result = vec![0xee; length];
            cipher.update(Buffers::Separate {
                source: data,
                destination: &mut result,
            })?;
            return Ok(result);
        }
        Place::Same => (0, 0),
        Place::DestinationAfter(distance) => (0, distance),
        Place::DestinationBefore(distance) => (distance, 0),
    };
    let mut region = vec![0xee; (from + data.len()).max(to + length)];
    region[from..from + data.len()].copy_from_slice(data);
    cipher.update(Buffers::Overlapping {
        region: &mut region,
        source: from..from + data.len(),
        destination: to..to + length,
    })?;
    Ok(region[to..to + length].to_vec())
}

fn places() -> impl Strategy<Value = Place> {
    prop_oneof![
        Just(Place::Separate),
        Just(Place::Same),
        (1usize..40).prop_map(Place::DestinationAfter),
        (1usize..40).prop_map(Place::DestinationBefore),
    ]
}

#[derive(Debug, Clone)]
struct Case {
    algorithm: Algorithm,
    padding: Padding,
    key: Vec<u8>,
    iv: Block,
    data: Vec<u8>,
    /// Where the data is divided into updates, and how the buffers of each lie in memory.
    cuts: Vec<(Index, Place)>,
    last_place: Place,
}

impl Case {
    fn ours(&self, direction: Direction) -> Cipher {
        init(self.algorithm, direction, self.padding, &self.key, &self.iv).unwrap()
    }

    fn reference(&self, direction: Direction) -> Reference {
        Reference::new(self.algorithm, direction, self.padding, &self.key, &self.iv)
    }

    fn pieces<'a>(&self, data: &'a [u8]) -> Vec<(&'a [u8], Place)> {
        let mut cuts: Vec<_> = self
            .cuts
            .iter()
            .map(|(index, place)| (index.index(data.len() + 1), *place))
            .collect();
        cuts.sort_by_key(|(position, _)| *position);
        let mut pieces = Vec::new();
        let mut start = 0;
        for (end, place) in cuts {
            pieces.push((&data[start..end], place));
            start = end;
        }
        pieces.push((&data[start..], self.last_place));
        pieces
    }
}

/// Any IV, and those whose counter soon carries into its high half or starts again from 0.
fn ivs() -> impl Strategy<Value = Block> {
    let carrying = (any::<u64>(), 0u64..1200)
        .prop_map(|(high, below)| (u128::from(high) << 64) | u128::from(u64::MAX - below));
    prop_oneof![
        4 => any::<Block>(),
        1 => carrying.prop_map(u128::to_be_bytes),
        1 => (0u128..1200).prop_map(|below| (u128::MAX - below).to_be_bytes()),
    ]
}

fn cases() -> impl Strategy<Value = Case> {
    let lengths = prop_oneof![4 => 0usize..100, 2 => 100usize..1200, 1 => 16_000usize..17_000];
    (
        select(vec![Algorithm::AesCbc, Algorithm::AesCtr]),
        select(vec![Padded, Unpadded]),
        select(vec![16usize, 24, 32]).prop_flat_map(|bytes| vec(any::<u8>(), bytes)),
        ivs(),
        lengths.prop_flat_map(|bytes| vec(any::<u8>(), bytes)),
        vec((any::<Index>(), places()), 0..6),
        places(),
    )
        .prop_map(
            |(algorithm, padding, key, iv, data, cuts, last_place)| Case {
                algorithm,
                padding,
                key,
                iv,
                data,
                cuts,
                last_place,
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn every_update_of_an_encryption_gives_the_same_bytes_as_openssl(case in cases()) {
        let mut ours = case.ours(Encrypt);
        let mut reference = case.reference(Encrypt);
        for (piece, place) in case.pieces(&case.data) {
            prop_assert_eq!(update(&mut ours, piece, place), Ok(reference.update(piece)));
        }
        let last = ours.finish().unwrap();
        prop_assert_eq!(last.as_bytes(), reference.finish().unwrap());
    }

    #[test]
    fn every_update_of_a_decryption_gives_the_same_bytes_as_openssl(mut case in cases()) {
        let encrypted = case.reference(Encrypt).all(&case.data);
        if case.algorithm == Algorithm::AesCtr && case.padding == Padded {
            case.cuts.clear();
        }
        let mut ours = case.ours(Decrypt);
        let mut reference = case.reference(Decrypt);
        let mut decrypted = Vec::new();
        for (piece, place) in case.pieces(&encrypted) {
            let result = update(&mut ours, piece, place).unwrap();
            prop_assert_eq!(&result, &reference.update(piece));
            decrypted.extend(result);
        }
        let last = ours.finish().unwrap();
        decrypted.extend(last.as_bytes());
        prop_assert_eq!(decrypted, case.data);
    }

    #[test]
    fn bad_padding_is_refused_when_openssl_refuses_it(
        key in vec(any::<u8>(), 16), iv: Block, data in vec(any::<u8>(), 0..80),
    ) {
        let mut ours = init(Algorithm::AesCbc, Decrypt, Padded, &key, &iv).unwrap();
        let mut reference = Reference::new(Algorithm::AesCbc, Decrypt, Padded, &key, &iv);
        prop_assert_eq!(update(&mut ours, &data, Place::Separate), Ok(reference.update(&data)));
        let finished = ours.finish().map(|last| last.as_bytes().to_vec());
        prop_assert_eq!(finished, reference.finish());
    }
}

const KEY: [u8; 16] = [7; 16];
const IV: Block = [9; BLOCK_BYTES];

fn gcm(direction: Direction) -> Cipher {
    init(Algorithm::AesCtr, direction, Padded, &KEY, &IV).unwrap()
}

fn seal(data: &[u8]) -> Vec<u8> {
    let mut cipher = gcm(Encrypt);
    let mut result = update(&mut cipher, data, Place::Separate).unwrap();
    result.extend(cipher.finish().unwrap().as_bytes());
    result
}

#[test]
fn any_changed_bit_is_detected_before_anything_is_written() {
    let good = seal(&[1; 40]);
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        let mut written = [0xee; 40];
        let mut cipher = gcm(Decrypt);
        let result = cipher.update(Buffers::Separate {
            source: &bad,
            destination: &mut written,
        });
        assert_eq!(result, Err(CipherError::BadData), "bit {bit}");
        assert_eq!(written, [0xee; 40], "bit {bit}");
        assert_eq!(cipher.finish(), Err(CipherError::BadData), "bit {bit}");
    }
}

#[test]
fn ciphertext_shorter_than_its_tag_is_bad_data() {
    let good = seal(b"");
    for length in 0..good.len() {
        let mut cipher = gcm(Decrypt);
        let result = update(&mut cipher, &good[..length], Place::Separate);
        assert_eq!(result, Err(CipherError::BadData), "{length}");
    }
    assert_eq!(gcm(Decrypt).finish(), Err(CipherError::BadData));
}

#[test]
fn gcm_decrypts_only_in_one_update() {
    let mut cipher = gcm(Decrypt);
    update(&mut cipher, &seal(b"data"), Place::Separate).unwrap();
    assert_eq!(
        update(&mut cipher, b"", Place::Separate),
        Err(CipherError::Misuse)
    );
}

#[test]
fn the_ctr_counter_carries_over_all_128_bits() {
    let iv = [0xff; BLOCK_BYTES];
    let mut ours = init(Algorithm::AesCtr, Encrypt, Unpadded, &KEY, &iv).unwrap();
    let reference = Reference::new(Algorithm::AesCtr, Encrypt, Unpadded, &KEY, &iv);
    let data = [0; 4096];
    assert_eq!(
        update(&mut ours, &data, Place::Separate),
        Ok(reference.all(&data))
    );
}

#[test]
fn wrong_lengths_of_key_and_iv_are_errors() {
    for algorithm in [Algorithm::AesCbc, Algorithm::AesCtr] {
        for (direction, padding) in [
            (Encrypt, Padded),
            (Encrypt, Unpadded),
            (Decrypt, Padded),
            (Decrypt, Unpadded),
        ] {
            for length in (0..40).filter(|length| ![16, 24, 32].contains(length)) {
                let result = init(algorithm, direction, padding, &vec![0; length], &IV).err();
                assert_eq!(result, Some(CipherError::KeyLength(length)));
            }
            for length in (0..40).filter(|&length| length != BLOCK_BYTES) {
                let result = init(algorithm, direction, padding, &KEY, &vec![0; length]).err();
                assert_eq!(result, Some(CipherError::IvLength(length)));
            }
        }
    }
}

#[test]
fn a_destination_of_the_wrong_length_is_an_error() {
    for algorithm in [Algorithm::AesCbc, Algorithm::AesCtr] {
        for padding in [Padded, Unpadded] {
            let mut cipher = init(algorithm, Encrypt, padding, &KEY, &IV).unwrap();
            let result = cipher.update(Buffers::Separate {
                source: &[0; 64],
                destination: &mut [0; 48],
            });
            assert_eq!(result, Err(CipherError::Misuse));
        }
    }
}

#[test]
fn the_encrypted_length_includes_the_padding() {
    for source_bytes in 0..100 {
        for algorithm in [Algorithm::AesCbc, Algorithm::AesCtr] {
            let reference = Reference::new(algorithm, Encrypt, Padded, &KEY, &IV);
            let expected = reference.all(&vec![0; source_bytes as usize]).len();
            assert_eq!(
                encrypted_bytes(algorithm, source_bytes),
                u32::try_from(expected).ok()
            );
        }
    }
    for algorithm in [Algorithm::AesCbc, Algorithm::AesCtr] {
        assert_eq!(encrypted_bytes(algorithm, u32::MAX), None);
    }
}
