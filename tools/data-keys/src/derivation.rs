//! How the key of an encrypted key file is derived from its password: by options, or found by trying.

use std::collections::BTreeSet;

use clap::Args;
use offline_keys::derivation::{Derivation, Digest};

use crate::{option_value::one_of, progress::Progress};

/// How a key file is encrypted, as far as known.
#[derive(Debug, Args)]
pub(crate) struct DerivationArguments {
    /// Digest of an encrypted file: sha1, sha224, …, sha512
    #[arg(long, value_parser = one_of(Digest::NAMED), hide_possible_values = true)]
    digest: Option<Digest>,

    /// Its PBKDF2 iterations; 0: no PBKDF2
    #[arg(long, value_name = "NUMBER")]
    iterations: Option<u32>,
}

/// Numbers of iterations that tools and manuals use besides the round numbers and the powers of two.
const RECOMMENDED: [u32; 17] = [
    15_000, 25_000, 120_000, 150_000, 180_000, 210_000, 216_000, 220_000, 250_000, 260_000,
    310_000, 320_000, 390_000, 480_000, 650_000, 720_000, 870_000,
];
/// What this program uses for exports, and what version 0.1.0 used.
const EXPORTED: [Derivation; 2] = [EXPORT, with_sha256(200_000)];
/// The default of `export`: MariaDB's manual calls it reasonable for SHA-256.
pub(crate) const EXPORT: Derivation = with_sha256(600_000);

const fn with_sha256(pbkdf2_iterations: u32) -> Derivation {
    Derivation {
        digest: Digest::Sha256,
        pbkdf2_iterations,
    }
}

/// More are tried only on request.
const MAX_SEARCHED: u32 = 1_000_000;

/// 0 and common numbers of iterations.
fn usual_iterations() -> BTreeSet<u32> {
    let powers_of = |base: u32| (0..).map_while(move |exponent| base.checked_pow(exponent));
    let round = powers_of(10).flat_map(|power| (1..10).filter_map(move |n| power.checked_mul(n)));
    let mut counts: BTreeSet<_> = round.chain(powers_of(2)).chain(RECOMMENDED).collect();
    counts.retain(|count| *count <= MAX_SEARCHED);
    counts.insert(0);
    counts
}

impl DerivationArguments {
    /// Lists the derivations that fit the arguments, with a progress bar while they are tried: first
    /// those of exported files, then the fastest first.
    pub fn candidates(&self) -> impl Iterator<Item = Derivation> {
        let digests = match self.digest {
            Some(digest) => vec![digest],
            None => Digest::NAMED.map(|(_, digest)| digest).to_vec(),
        };
        let counts = match self.iterations {
            Some(count) => BTreeSet::from([count]),
            None => usual_iterations(),
        };
        let mut candidates: Vec<_> = counts
            .into_iter()
            .flat_map(|pbkdf2_iterations| {
                digests.iter().map(move |&digest| Derivation {
                    digest,
                    pbkdf2_iterations,
                })
            })
            .collect();
        candidates.sort_by_key(|candidate| !EXPORTED.contains(candidate));
        let work = |candidate: &Derivation| u64::from(candidate.pbkdf2_iterations);
        let progress = Progress::new(
            candidates.iter().map(work).sum(),
            "{bar:40} looking for the digest and the number of iterations, {eta} left",
        );
        let mut before = 0;
        candidates.into_iter().inspect(move |candidate| {
            progress.add(before);
            before = work(candidate);
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_iteration_counts_are_tried_in_ascending_order() {
        let counts = usual_iterations();
        for count in [
            0, 1, 2, 1000, 2048, 4096, 10_000, 20_000, 100_000, 200_000, 310_000, 600_000,
            1_000_000,
        ] {
            assert!(counts.contains(&count), "{count}");
        }
        assert_eq!(counts.last(), Some(&MAX_SEARCHED));
        let work: u64 = counts.iter().map(|&count| u64::from(count)).sum();
        assert!(work < 20_000_000, "{work} iterations of each digest");
    }

    #[test]
    fn given_values_are_not_searched_for() {
        let tried = |digest, iterations| {
            DerivationArguments { digest, iterations }
                .candidates()
                .map(|candidate| (candidate.digest, candidate.pbkdf2_iterations))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            tried(Some(Digest::Sha512), Some(4_000_000_000)),
            [(Digest::Sha512, 4_000_000_000)]
        );
        assert_eq!(tried(None, Some(7)).len(), 5);
        assert_eq!(
            tried(Some(Digest::Sha1), None).len(),
            usual_iterations().len()
        );
        let all = tried(None, None);
        assert_eq!(all.len(), usual_iterations().len() * 5);
        let (exported, others) = all.split_at(2);
        let sha256 = |iterations| (Digest::Sha256, iterations);
        assert_eq!(exported, [sha256(200_000), sha256(600_000)]);
        assert!(others.is_sorted_by_key(|(_, iterations)| *iterations));
    }
}
