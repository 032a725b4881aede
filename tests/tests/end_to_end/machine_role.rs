//! `mfa = false`: sessions of the machine's role, renewed by the broker with no prompt.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    process::Command,
    thread,
};

use broker_api::SessionPhase;
use end_to_end_tests::{
    SLEEP, Scene, Wrapper,
    broker::{failure, generated, phase},
    relay, wait_until,
};

fn without_key(scene: &Scene) -> Command {
    let mut command = scene.command(&SLEEP);
    command
        .env_remove("AWS_ACCESS_KEY_ID")
        .env_remove("AWS_SECRET_ACCESS_KEY");
    command
}

fn with_container(scene: &Scene) -> Command {
    let mut command = without_key(scene);
    let uri = format!("{}/container-credentials", scene.aws.endpoint());
    command.env("AWS_CONTAINER_CREDENTIALS_FULL_URI", uri).env(
        "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
        scene.aws.path("container-token"),
    );
    command
}

fn with_container_token_by_value(scene: &Scene) -> Command {
    let mut command = with_container(scene);
    command
        .env_remove("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE")
        .env(
            "AWS_CONTAINER_AUTHORIZATION_TOKEN",
            scene.aws.read("container-token"),
        );
    command
}

fn with_instance(scene: &Scene) -> Command {
    let mut command = without_key(scene);
    command
        .env_remove("AWS_EC2_METADATA_DISABLED")
        .env("AWS_EC2_METADATA_SERVICE_ENDPOINT", scene.aws.endpoint());
    command
}

fn with_web_identity(scene: &Scene) -> Command {
    let mut command = without_key(scene);
    command
        .env(
            "AWS_WEB_IDENTITY_TOKEN_FILE",
            scene.aws.path("web-identity-token"),
        )
        .env("AWS_ROLE_ARN", "arn:aws:iam::111122223333:role/host");
    command
}

fn renewals(wrapper: &Wrapper) -> usize {
    let opened = "iam-kms-broker: session ASIA";
    wrapper.process.output().matches(opened).count()
}

/// Data keys are available throughout, across several sessions, and nobody is prompted.
fn sessions_follow_each_other(with_source: fn(&Scene) -> Command) {
    // Renewed half-way: a busy machine has the other half for it.
    let scene = Scene::with_machine_role("20");
    let wrapper = scene.spawn(&mut with_source(&scene));
    wrapper.wait_for_command("sleep");
    let mut calls = 0;
    while renewals(&wrapper) < 3 {
        generated(&scene);
        calls += 1;
    }
    generated(&scene);
    assert!(calls > 3);
    assert!(!scene.fifo().exists());
    let log = scene.aws.log();
    assert!(log.contains("arn:aws:sts::111122223333:assumed-role/host/"));
    let output = wrapper.process.output();
    assert!(!output.contains("enter an MFA code"), "{output}");
    assert!(!output.contains("ended"), "{output}");
}

#[test]
fn container_credentials_are_renewed_before_they_end() {
    sessions_follow_each_other(with_container);
}

#[test]
fn container_credentials_are_renewed_when_their_token_is_in_a_variable() {
    sessions_follow_each_other(with_container_token_by_value);
}

#[test]
fn instance_credentials_are_renewed_before_they_end() {
    sessions_follow_each_other(with_instance);
}

#[test]
fn web_identity_credentials_are_renewed_before_they_end() {
    sessions_follow_each_other(with_web_identity);
}

/// An endpoint like that of `scene`, whose second answer breaks off without an end; returns its address.
fn stalling_endpoint(scene: &Scene) -> String {
    let server = scene.aws.endpoint().replace("http://", "");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        let mut stalled = Vec::new();
        for (number, mut client) in listener.incoming().flatten().enumerate() {
            if number == 1 {
                let _ = client.read(&mut [0; 4096]);
                let head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n{";
                client.write_all(head).unwrap();
                stalled.push(client);
                continue;
            }
            let server = TcpStream::connect(&server).unwrap();
            let back = (server.try_clone().unwrap(), client.try_clone().unwrap());
            thread::spawn(move || relay(client, server));
            thread::spawn(move || relay(back.0, back.1));
        }
    });
    address
}

#[test]
fn an_answer_that_stalls_does_not_keep_the_next_one_away() {
    let scene = Scene::with_machine_role("20").line("request_timeout_seconds = 2");
    let mut command = with_container(&scene);
    let uri = format!("http://{}/container-credentials", stalling_endpoint(&scene));
    let wrapper = scene.spawn(command.env("AWS_CONTAINER_CREDENTIALS_FULL_URI", &uri));
    wrapper.wait_for_command("sleep");
    let line = wrapper.process.wait_for("cannot get a new AWS session");
    let expected = format!("{uri} gave no credentials in 2 seconds (request_timeout_seconds)");
    assert!(line.contains(&expected), "{line}");
    wait_until("the next session", || renewals(&wrapper) > 0);
    generated(&scene);
}

#[test]
fn a_role_that_has_gone_is_reported_when_a_key_is_requested() {
    let mut scene = Scene::with_machine_role("10");
    let wrapper = scene.spawn(&mut with_container(&scene));
    wrapper.wait_for_command("sleep");
    generated(&scene);
    let endpoint = scene.aws.endpoint();
    scene.aws.serve_again(&endpoint, &[]);
    let line = wrapper.process.wait_for("cannot get a new AWS session");
    assert!(
        line.contains(
            "cannot get AWS credentials from the container: it answered with HTTP status 404"
        ),
        "{line}"
    );
    wait_until("the end of the session", || {
        phase(&scene) == SessionPhase::Failed
    });
    let message = failure(&scene).message;
    assert!(
        message.contains("no new one can be opened: cannot get AWS credentials from the container"),
        "{message}"
    );
}

#[test]
fn a_host_without_a_role_exits_with_125() {
    let scene = Scene::with_machine_role("900");
    let output = scene.spawn(&mut without_key(&scene)).ends_with(125);
    assert!(
        output.contains(
            "found no AWS credentials to use as they are (mfa = false): there are none in the environment"
        ),
        "{output}"
    );
}
