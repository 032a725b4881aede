//! This host's clock is set while a session is open, which goes on by AWS's.

use std::process::Command;

use broker_api::SessionPhase;
use end_to_end_tests::{
    Manager, Process, SLEEP, Scene,
    broker::{failure, generated, phase},
    wait_until, write_fifo,
};
use nix::sys::signal::SIGKILL;

/// A scene whose programs take the host's clock from a file.
struct Clock {
    scene: Scene,
}

impl Clock {
    fn new(scene: Scene) -> Self {
        let source = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/end_to_end/clock_jumps/wall_clock.c"
        );
        let mut compiler = Command::new("cc");
        compiler
            .args(["-shared", "-fPIC", "-Wall", "-Werror", "-o"])
            .arg(scene.sandbox.path("wall_clock.so"))
            .arg(source);
        assert!(compiler.status().unwrap().success());
        let clock = Self { scene };
        clock.set("0");
        clock
    }

    /// Sets the clock, by so many seconds from the right time.
    fn set(&self, offset_seconds: &str) {
        self.scene.sandbox.write("clock", offset_seconds);
    }

    fn of(&self, mut command: Command) -> Command {
        command
            .env("LD_PRELOAD", self.scene.sandbox.path("wall_clock.so"))
            .env("WALL_CLOCK", self.scene.sandbox.path("clock"));
        command
    }
}

const AN_HOUR_AHEAD: &str = "3600";

#[test]
fn a_broker_keeps_a_session_that_aws_honours_when_the_clock_is_an_hour_ahead_for_a_while() {
    for mfa in ["code", "document"] {
        let clock = Clock::new(Scene::new().with_broker());
        let scene = &clock.scene;
        let broker = Process::start(&mut clock.of(scene.broker_command()));
        broker.wait_for("enter an MFA code");
        let written = match mfa {
            "code" => scene.aws.code(),
            _ => scene.aws.session_document(),
        };
        write_fifo(scene.fifo(), written.as_bytes());
        broker.wait_for("is open until");
        clock.set(AN_HOUR_AHEAD);
        assert_eq!(phase(scene), SessionPhase::Open, "{mfa}");
        let message = failure(scene).message;
        assert!(message.contains("clock"), "{message}");
        clock.set("0");
        generated(scene);
        assert_eq!(scene.aws.calls("GetSessionToken"), 1);
        let output = broker.output();
        assert!(!output.contains("is over"), "{output}");
    }
}

#[test]
fn a_session_that_has_ended_at_aws_has_ended_here_even_if_the_clock_is_an_hour_behind() {
    let clock = Clock::new(Scene::with_aws(&["--session-lifetime", "2"]).with_broker());
    let scene = &clock.scene;
    let broker = Process::start(&mut clock.of(scene.broker_command()));
    broker.wait_for("enter an MFA code");
    write_fifo(scene.fifo(), scene.aws.code().as_bytes());
    broker.wait_for("is open until");
    clock.set("-3600");
    wait_until("the end of the session", || {
        phase(scene) == SessionPhase::AwaitingCode
    });
}

#[test]
fn a_kept_session_serves_a_restart_with_the_clock_an_hour_ahead_and_the_broker_after_it() {
    let clock = Clock::new(Scene::new().with_broker());
    let scene = &clock.scene;
    let mut manager = Manager::start(&scene.sandbox);
    let mut command = clock.of(scene.command(&SLEEP));
    command.env("NOTIFY_SOCKET", manager.address());
    let mut wrapper = scene.spawn(&mut command);
    wrapper.give_code(&scene.aws);
    wrapper.wait_for_command("sleep");
    assert!(manager.stored().is_some());
    wrapper.process.signal(SIGKILL);
    wrapper.process.wait();
    wait_until("the broker to leave", || {
        !scene.configuration.broker_socket.exists()
    });
    clock.set(AN_HOUR_AHEAD);
    let command = clock.of(scene.command(&SLEEP));
    let wrapper = scene.spawn(&mut manager.restart(&command));
    wrapper.process.wait_for("kept by systemd");
    wrapper.wait_for_command("sleep");
    assert_eq!(phase(scene), SessionPhase::Open);
}
