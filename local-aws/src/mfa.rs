//! The virtual MFA device: RFC 6238 with SHA-1, six digits, steps of 30 seconds, as AWS's are.

use totp_rs::{Builder, Secret as Seed, Totp};

use crate::caller::Principal;
use crate::error::{ApiError, ErrorKind};
use crate::state::{State, User};

/// Steps that a device's clock may be ahead or behind.
const SKEW_STEPS: u16 = 1;
const STEP_SECONDS: u64 = 30;

/// Takes an MFA code of `principal`'s device, if it is right and neither it nor a later one was
/// taken before. Nothing changes on an error.
///
/// `Ok(false)` if neither serial number nor code was given.
pub fn take_code(
    state: &mut State,
    principal: &Principal,
    serial_number: Option<&str>,
    token_code: Option<&str>,
) -> Result<bool, ApiError> {
    let (serial_number, token_code) = match (serial_number, token_code) {
        (None, None) => return Ok(false),
        (Some(serial_number), Some(token_code)) => (serial_number, token_code),
        _ => {
            return Err(denied(
                ", must provide both MFA serial number and one time pass code. ",
            ));
        }
    };
    let now = u64::try_from(state.now().as_second()).map_err(ApiError::internal)?;
    let user = device_owner(state, principal, serial_number).ok_or_else(|| {
        denied(
            ", unable to validate MFA code.  Please verify your MFA serial number is valid and \
             associated with this user.",
        )
    })?;
    let step = totp(user)?
        .check(token_code, now)
        .filter(|step| user.last_mfa_step.is_none_or(|last| *step > last))
        .ok_or_else(|| denied(" with invalid MFA one time pass code. "))?;
    user.last_mfa_step = Some(step);
    Ok(true)
}

fn device_owner<'a>(
    state: &'a mut State,
    principal: &Principal,
    serial_number: &str,
) -> Option<&'a mut User> {
    let Principal::User { name } = principal else {
        return None;
    };
    if state.mfa_serial_number(name) != serial_number {
        return None;
    }
    state.users.get_mut(name)
}

fn totp(user: &User) -> Result<Totp, ApiError> {
    let seed = Seed::try_from_base32(user.mfa_seed.expose())
        .map_err(|_| ApiError::internal("the seed of an MFA device is not base32"))?;
    Builder::new()
        .with_digits(6)
        .with_step_duration(STEP_SECONDS)
        .with_skew(SKEW_STEPS)
        .with_secret(seed)
        .build()
        .map_err(|error| ApiError::internal(format!("an MFA device: {error}")))
}

fn denied(why: &str) -> ApiError {
    ApiError::new(
        ErrorKind::AccessDenied,
        format!("MultiFactorAuthentication failed{why}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;

    /// The SHA-1 seed of RFC 6238, appendix B, in base32; its codes there have eight digits, of
    /// which the last six are the code of six digits.
    const RFC_SEED: &str = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ";
    const RFC_CODES: [(i64, &str); 6] = [
        (59, "287082"),
        (1_111_111_109, "081804"),
        (1_111_111_111, "050471"),
        (1_234_567_890, "005924"),
        (2_000_000_000, "279037"),
        (20_000_000_000, "353130"),
    ];

    struct Device {
        state: State,
        principal: Principal,
    }

    impl Device {
        fn new() -> Self {
            let mut state = State::new("111122223333", "us-east-1", "mariadb").unwrap();
            state.users.get_mut("mariadb").unwrap().mfa_seed = Secret::new(RFC_SEED.into());
            Self {
                state,
                principal: Principal::User {
                    name: "mariadb".into(),
                },
            }
        }

        fn take_at(&mut self, seconds: i64, code: &str) -> Result<bool, String> {
            self.state.clock_offset_seconds = 0;
            self.state.clock_offset_seconds = seconds - self.state.now().as_second();
            let serial = self.state.mfa_serial_number("mariadb");
            take_code(&mut self.state, &self.principal, Some(&serial), Some(code))
                .map_err(|error| error.message)
        }
    }

    #[test]
    fn the_codes_of_rfc_6238_are_taken() {
        for (seconds, code) in RFC_CODES {
            assert_eq!(Device::new().take_at(seconds, code), Ok(true), "{seconds}");
        }
    }

    #[test]
    fn a_code_is_taken_only_once() {
        let mut device = Device::new();
        device.take_at(1_234_567_890, "005924").unwrap();
        assert_eq!(
            device.take_at(1_234_567_890, "005924").unwrap_err(),
            "MultiFactorAuthentication failed with invalid MFA one time pass code. "
        );
    }

    #[test]
    fn a_code_older_than_the_last_one_is_refused() {
        let mut device = Device::new();
        // Both are of the window around this second: steps 37037036 and 37037037.
        device.take_at(1_111_111_111, "050471").unwrap();
        assert!(device.take_at(1_111_111_111, "081804").is_err());
    }

    #[test]
    fn one_step_before_and_after_is_taken_and_two_are_not() {
        let (seconds, code) = RFC_CODES[4];
        let step_start = seconds - seconds % 30;
        for (at, taken) in [(-31, false), (-30, true), (59, true), (60, false)] {
            assert_eq!(
                Device::new().take_at(step_start + at, code).is_ok(),
                taken,
                "{at}"
            );
        }
    }

    #[test]
    fn a_wrong_serial_number_is_told_from_a_wrong_code() {
        let mut device = Device::new();
        let serial = Some("arn:aws:iam::111122223333:mfa/other");
        let error =
            take_code(&mut device.state, &device.principal, serial, Some("000000")).unwrap_err();
        assert_eq!(
            error.message,
            "MultiFactorAuthentication failed, unable to validate MFA code.  Please verify your \
             MFA serial number is valid and associated with this user."
        );
    }

    #[test]
    fn a_serial_number_without_a_code_is_refused() {
        let mut device = Device::new();
        let serial = device.state.mfa_serial_number("mariadb");
        let error =
            take_code(&mut device.state, &device.principal, Some(&serial), None).unwrap_err();
        assert_eq!(
            error.message,
            "MultiFactorAuthentication failed, must provide both MFA serial number and one time \
             pass code. "
        );
    }
}
