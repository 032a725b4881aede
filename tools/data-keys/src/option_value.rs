//! The value of an option.

use clap::builder::{PossibleValuesParser, TypedValueParser};

/// Takes one of these names, for what it stands for.
pub(crate) fn one_of<T, const N: usize>(
    named: [(&'static str, T); N],
) -> impl TypedValueParser<Value = T>
where
    T: Copy + Send + Sync + 'static,
{
    PossibleValuesParser::new(named.map(|(name, _)| name)).try_map(move |given| {
        let found = named.iter().find(|(name, _)| *name == given);
        found.map(|(_, meant)| *meant).ok_or("unknown name")
    })
}
