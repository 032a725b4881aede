//! The source and destination of one update, which may overlap.

use core::ops::Range;

use aes::cipher::inout::InOutBuf;

use super::CipherError;

/// Source and destination of one update.
pub enum Buffers<'a> {
    /// Memory that does not overlap.
    Separate {
        /// The data.
        source: &'a [u8],
        /// Room for the result.
        destination: &'a mut [u8],
    },
    /// Overlapping or identical memory.
    Overlapping {
        /// The memory of both.
        region: &'a mut [u8],
        /// Place of the data in `region`.
        source: Range<usize>,
        /// Place of the result in `region`.
        destination: Range<usize>,
    },
}

impl<'a> Buffers<'a> {
    /// Length of the data.
    #[inline]
    pub fn source_bytes(&self) -> usize {
        match self {
            Self::Separate { source, .. } => source.len(),
            Self::Overlapping { source, .. } => source.len(),
        }
    }

    /// Length of the result.
    #[inline]
    pub fn destination_bytes(&self) -> usize {
        match self {
            Self::Separate { destination, .. } => destination.len(),
            Self::Overlapping { destination, .. } => destination.len(),
        }
    }

    /// Returns the data.
    #[inline]
    pub fn source(&self) -> Result<&[u8], CipherError> {
        match self {
            Self::Separate { source, .. } => Ok(source),
            Self::Overlapping { region, source, .. } => {
                region.get(source.clone()).ok_or(CipherError::Misuse)
            }
        }
    }

    /// Returns a buffer pair for as much of the source as fits into the destination. Overlapping data is first
    /// moved to the destination.
    #[inline]
    pub fn into_in_out(self) -> Result<InOutBuf<'a, 'a, u8>, CipherError> {
        match self {
            Self::Separate {
                source,
                destination,
            } => source
                .get(..destination.len())
                .and_then(|source| InOutBuf::new(source, destination).ok())
                .ok_or(CipherError::Misuse),
            Self::Overlapping { .. } => self.into_moved(&[]).map(InOutBuf::from),
        }
    }

    /// Fills the destination with `head`, followed by the start of the source, and returns it.
    #[inline]
    pub fn into_moved(self, head: &[u8]) -> Result<&'a mut [u8], CipherError> {
        let body = self
            .destination_bytes()
            .checked_sub(head.len())
            .filter(|&body| body <= self.source_bytes())
            .ok_or(CipherError::Misuse)?;
        let destination = match self {
            Self::Separate {
                source,
                destination,
            } => {
                let (_, rest) = destination.split_at_mut(head.len());
                let (source, _) = source.split_at(body);
                rest.copy_from_slice(source);
                destination
            }
            Self::Overlapping {
                region,
                source,
                destination,
            } => {
                let (from, to) = (source.start, destination.start + head.len());
                if from != to {
                    region.copy_within(from..from + body, to);
                }
                region.get_mut(destination).ok_or(CipherError::Misuse)?
            }
        };
        let (first, _) = destination.split_at_mut(head.len());
        first.copy_from_slice(head);
        Ok(destination)
    }
}
