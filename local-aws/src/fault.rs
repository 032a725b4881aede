//! Faults on demand: what the server does in the place of an answer.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::error::{ApiError, ErrorKind};
use crate::operation::Operation;
use crate::service::Service;

/// The operation name that stands for all of them.
pub const ANY_OPERATION: &str = "any";

/// What happens to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub enum FaultKind {
    /// The answer comes later, by --milliseconds
    Delay,
    /// The service's throttling error (HTTP 400)
    Throttle,
    /// An internal failure (HTTP 500)
    #[value(name = "500")]
    InternalFailure,
    /// Service unavailable (HTTP 503)
    #[value(name = "503")]
    Unavailable,
    /// The connection is reset (TCP RST)
    Reset,
    /// The connection stays open, and no answer comes
    Silence,
    /// HTTP 200 with an HTML page, such as a captive portal gives
    Garbage,
    /// HTTP 200 of the right form without the credentials (STS) or any member (KMS)
    NoCredentials,
    /// HTTP 200 without a body
    Empty,
}

impl FaultKind {
    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Delay => "delay",
            Self::Throttle => "throttle",
            Self::InternalFailure => "500",
            Self::Unavailable => "503",
            Self::Reset => "reset",
            Self::Silence => "silence",
            Self::Garbage => "garbage",
            Self::NoCredentials => "no-credentials",
            Self::Empty => "empty",
        }
    }
}

/// A fault that stands until it is used up or cleared.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Fault {
    /// The operation's name, or [`ANY_OPERATION`].
    pub operation: String,
    /// What happens.
    pub kind: FaultKind,
    /// For [`FaultKind::Delay`]: how long the answer waits.
    pub milliseconds: u64,
    /// For how many more calls; `None` until cleared.
    pub remaining: Option<u64>,
}

/// What the standing faults make of one call.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Milliseconds to wait first.
    pub delay_milliseconds: u64,
    /// What to do then instead of the operation.
    pub instead: Option<FaultKind>,
}

/// Takes what `faults` hold for `operation` and counts it: every delay, and the first other one.
pub fn take(faults: &mut Vec<Fault>, operation: &str) -> Plan {
    let mut plan = Plan::default();
    for fault in faults.iter_mut() {
        if fault.operation != operation && fault.operation != ANY_OPERATION {
            continue;
        }
        match fault.kind {
            FaultKind::Delay => plan.delay_milliseconds += fault.milliseconds,
            _ if plan.instead.is_some() => continue,
            kind => plan.instead = Some(kind),
        }
        fault.remaining = fault.remaining.map(|count| count.saturating_sub(1));
    }
    faults.retain(|fault| fault.remaining != Some(0));
    plan
}

/// The error of the service that `kind` stands for; `None` for those that are no error answer.
pub fn error(kind: FaultKind, operation: &Operation) -> Option<ApiError> {
    let (kind, message) = match (kind, operation.service) {
        (FaultKind::Throttle, Service::Sts) => (ErrorKind::Throttling, "Rate exceeded"),
        (FaultKind::Throttle, Service::Kms) => (
            ErrorKind::Throttling,
            "You have exceeded the rate at which you may call KMS. Reduce the frequency of your \
             calls.",
        ),
        (FaultKind::InternalFailure, _) => (
            ErrorKind::Internal,
            "The request processing has failed because of an unknown error, exception or failure.",
        ),
        (FaultKind::Unavailable, _) => (
            ErrorKind::Unavailable,
            "The request has failed due to a temporary failure of the server.",
        ),
        _ => return None,
    };
    Some(ApiError::new(kind, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(operation: &str, kind: FaultKind, remaining: Option<u64>) -> Fault {
        Fault {
            operation: operation.into(),
            kind,
            milliseconds: 10,
            remaining,
        }
    }

    #[test]
    fn a_counted_fault_ends_by_itself_and_an_uncounted_one_stays() {
        let mut faults = vec![
            fault("Decrypt", FaultKind::Throttle, Some(2)),
            fault(ANY_OPERATION, FaultKind::Delay, None),
        ];
        for instead in [Some(FaultKind::Throttle), Some(FaultKind::Throttle), None] {
            assert_eq!(
                take(&mut faults, "Decrypt"),
                Plan {
                    delay_milliseconds: 10,
                    instead
                }
            );
        }
        assert_eq!(faults.len(), 1);
    }

    #[test]
    fn a_fault_hits_no_other_operation() {
        let mut faults = vec![fault("Decrypt", FaultKind::Reset, Some(1))];
        assert_eq!(take(&mut faults, "Encrypt"), Plan::default());
        assert_eq!(faults.len(), 1);
    }

    #[test]
    fn of_two_faults_for_one_call_the_second_waits_for_the_next() {
        let mut faults = vec![
            fault("Decrypt", FaultKind::InternalFailure, Some(1)),
            fault("Decrypt", FaultKind::Silence, Some(1)),
        ];
        assert_eq!(
            take(&mut faults, "Decrypt").instead,
            Some(FaultKind::InternalFailure)
        );
        assert_eq!(
            take(&mut faults, "Decrypt").instead,
            Some(FaultKind::Silence)
        );
    }
}
