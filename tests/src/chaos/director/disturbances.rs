//! What is taken away from a running server, and brought back.

use std::time::Duration;

use nix::sys::signal::{Signal::SIGSTOP, kill};

use super::{Director, broker_care::RECOVERY_BOUND};
use crate::chaos::{
    SESSION_SECONDS,
    schema::{Kind, create_table},
    world::Outcome,
};

/// Above those that tables keep.
const FIRST_KEY_ID_OF_TRIALS: u32 = 10_000;

/// What came of a try to make a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NewKey {
    Made,
    Refused,
    NoServer,
}

/// Something that is taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::chaos) enum Disturbance {
    /// `local-aws fault` of this kind, for all calls until cleared.
    Fault(&'static str),
    /// The same for a few calls.
    FewFaults(&'static str),
    /// AWS answers late.
    Latency,
    /// Nobody listens where AWS was.
    Unreachable,
    /// AWS ends and starts again.
    RestartOfAws,
    /// The master key is disabled.
    DisabledKey,
    /// The session ends before its time.
    SessionEnd,
    /// SIGKILL to the broker.
    BrokerKilled,
    /// SIGTERM to the broker, and another one in its place.
    BrokerRestarted,
    /// SIGSTOP to the broker, and SIGCONT.
    BrokerStopped,
}

impl Disturbance {
    /// Whether it cannot come on top of others.
    fn needs_all_else(self) -> bool {
        !matches!(
            self,
            Self::Fault(_) | Self::FewFaults(_) | Self::Latency | Self::RestartOfAws
        )
    }
}

pub(in crate::chaos) const ALL: [Disturbance; 19] = [
    Disturbance::Fault("throttle"),
    Disturbance::FewFaults("throttle"),
    Disturbance::Fault("500"),
    Disturbance::FewFaults("503"),
    Disturbance::Fault("silence"),
    Disturbance::Fault("reset"),
    Disturbance::Fault("garbage"),
    Disturbance::Latency,
    Disturbance::Unreachable,
    Disturbance::RestartOfAws,
    Disturbance::DisabledKey,
    Disturbance::SessionEnd,
    Disturbance::SessionEnd,
    Disturbance::BrokerKilled,
    Disturbance::BrokerKilled,
    Disturbance::BrokerKilled,
    Disturbance::BrokerRestarted,
    Disturbance::BrokerStopped,
    Disturbance::BrokerStopped,
];

impl Director<'_> {
    /// Takes something away for a while; it may be missing still when this returns.
    pub(in crate::chaos) fn disturb(&mut self, disturbance: Disturbance) {
        self.world.disturb();
        if disturbance.needs_all_else() {
            self.mend();
        }
        self.world.note(format!("disturb: {disturbance:?}"));
        let tally = &self.world.tally;
        match disturbance {
            Disturbance::Fault(kind) => {
                tally.count("KMS", "faults");
                self.scene
                    .aws
                    .fault(&format!("--operation any --kind {kind}"));
            }
            Disturbance::FewFaults(kind) => {
                tally.count("KMS", "faults");
                let count = self.random.u32(1..12);
                self.scene
                    .aws
                    .fault(&format!("--operation any --kind {kind} --count {count}"));
            }
            Disturbance::Latency => {
                tally.count("KMS", "slow");
                let milliseconds = self.random.u32(100..1800);
                self.scene.aws.fault(&format!(
                    "--operation any --kind delay --milliseconds {milliseconds}"
                ));
            }
            Disturbance::Unreachable => {
                tally.count("KMS", "unreachable");
                self.aws_endpoint = Some(self.scene.aws.endpoint());
                self.scene.aws.stop();
            }
            Disturbance::RestartOfAws => {
                tally.count("KMS", "restarted");
                self.end_faults();
                let endpoint = self.scene.aws.endpoint();
                self.scene.aws.stop();
                self.scene.aws.start_again_at(&endpoint);
            }
            Disturbance::DisabledKey => {
                tally.count("KMS", "key disabled");
                self.key_is_disabled = true;
                self.set_key_state("disable-key");
            }
            Disturbance::SessionEnd => {
                tally.count("codes", "sessions ended");
                let ahead = self.scene.aws.next_code_ahead_seconds() + SESSION_SECONDS + 60;
                self.scene.aws.set_clock(&ahead.to_string());
                let _under_way = self.begin("the end of the session");
                // The broker learns it from KMS.
                while !self.awaits_code() && self.try_new_key() != NewKey::NoServer {}
            }
            Disturbance::BrokerKilled => self.kill_broker(),
            Disturbance::BrokerRestarted if self.service.is_some() => {
                self.stop_service();
                self.start_service();
            }
            // That of a launcher ends with its server only.
            Disturbance::BrokerRestarted | Disturbance::BrokerStopped => {
                tally.count("broker", "stopped and continued");
                let pid = self.broker_pid();
                self.stopped_broker = Some(pid);
                kill(pid, SIGSTOP).unwrap();
            }
        }
        let pause = self.random.u64(200..3000);
        self.world.pause(Duration::from_millis(pause));
        if self.random.bool() {
            self.continue_broker();
        }
    }

    /// AWS answers again, and says what it said before.
    pub(in crate::chaos) fn end_faults(&mut self) {
        self.continue_broker();
        if let Some(endpoint) = self.aws_endpoint.take() {
            self.scene.aws.start_again_at(&endpoint);
        }
        self.scene.aws.fault("--clear");
        self.scene.aws.set_clock("0");
        if self.key_is_disabled {
            self.set_key_state("enable-key");
            self.key_is_disabled = false;
        }
    }

    fn set_key_state(&self, operation: &str) {
        let key_id = format!("--key-id={}", self.master_key_id);
        self.scene.aws.cli(&["kms", operation, &key_id]);
    }

    /// Brings everything back, and waits until what needs KMS works again.
    pub(in crate::chaos) fn recover(&mut self) {
        self.mend();
        let world = self.world;
        let _under_way = world.watch.begin(
            "a new key, once all that was taken away is back",
            RECOVERY_BOUND,
        );
        loop {
            // The broker may notice only now that the session is over.
            if self.awaits_code() {
                self.mend();
            }
            match self.try_new_key() {
                NewKey::Made => break,
                NewKey::Refused => world.pause(Duration::from_millis(100)),
                NewKey::NoServer => return,
            }
        }
        world.tally.count("KMS", "recoveries");
    }

    /// Makes a table with a key id that is new, and drops it.
    fn try_new_key(&self) -> NewKey {
        let number = self.world.shadow.next_number();
        let key_id = FIRST_KEY_ID_OF_TRIALS + number;
        let statements = format!(
            "{}; DROP TABLE d.t{number}",
            create_table(number, Kind::Plain, key_id)
        );
        match self.world.execute(&statements) {
            Outcome::Done(_) => NewKey::Made,
            Outcome::Refused(_) => NewKey::Refused,
            Outcome::Unknown => NewKey::NoServer,
        }
    }
}
