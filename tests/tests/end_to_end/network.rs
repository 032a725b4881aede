//! How AWS is reached: proxy, CA certificates, FIPS and dual-stack endpoints, as the AWS CLI has them,
//! in every program.

use std::{
    fs,
    io::{Read, Write},
    net::TcpListener,
    path::Path,
    process::{Command, Output, Stdio},
    thread,
};

use broker_api::{KeyContext, ListKeys, Reply, Request};
use end_to_end_tests::{
    NOBODY, Process, Proxy, SLEEP, Scene, TlsStorage, after,
    broker::{self},
    write_fifo,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
};

/// The names by which the programs call AWS in these tests.
const HOSTS: [&str; 8] = [
    "keys.s3.us-east-1.amazonaws.com",
    "sts.us-east-1.amazonaws.com",
    "kms.us-east-1.amazonaws.com",
    "sts-fips.us-east-1.amazonaws.com",
    "kms-fips.us-east-1.amazonaws.com",
    "sts.us-east-1.api.aws",
    "kms.us-east-1.api.aws",
    "127.0.0.1",
];

/// AWS behind a proxy, with certificates of a private authority.
struct Site {
    scene: Scene,
    proxy: Proxy,
    /// PEM file of the authority.
    authority: String,
    /// An authority that has signed nothing.
    another_authority: String,
}

impl Site {
    fn new(scene: Scene) -> Self {
        let mut scene = scene;
        let (authority, certificate, key) = certificates("Company CA");
        let (another, ..) = certificates("Another CA");
        let write = |name: &str, text: &str| {
            let path = scene.sandbox.write(name, text);
            path.to_str().unwrap().to_owned()
        };
        let authority = write("authority.pem", &authority);
        let another_authority = write("another.pem", &another);
        let tls = [
            "--tls-cert",
            &write("certificate.pem", &certificate),
            "--tls-key",
            &write("key.pem", &key),
        ];
        let endpoint = scene.aws.endpoint();
        scene.aws.serve_again(&endpoint, &tls);
        scene.aws.trust(&authority);
        let proxy = Proxy::start(endpoint.rsplit('/').next().unwrap());
        Self {
            scene,
            proxy,
            authority,
            another_authority,
        }
    }

    /// `command` without an endpoint URL: with AWS's own host names, which only the proxy knows.
    fn behind_proxy(&self, mut command: Command) -> Command {
        command
            .env_remove("AWS_ENDPOINT_URL")
            .env("HTTPS_PROXY", self.proxy.url())
            .env("AWS_CA_BUNDLE", &self.authority);
        command
    }

    /// `--check` behind the proxy.
    fn check(&self) -> Command {
        self.behind_proxy(self.scene.command(&["--check", "true"]))
    }

    /// `kms-data-keys verify` of a directory with one key file.
    fn data_keys(&self) -> Command {
        let keys = self.scene.sandbox.directory("keys");
        let file = keys.join("aws-kms-key.1.1");
        if !file.exists() {
            let key = "00112233445566778899aabbccddeeff";
            self.scene.aws.wrap_key(&self.scene.sandbox, key, &file);
        }
        let arguments = ["verify"];
        let aws = &self.scene.aws;
        self.behind_proxy(aws.data_keys_command("bin", &arguments, &keys))
    }

    fn manage_key(&self) -> Command {
        let arguments = ["--key=alias/mariadb", "status"];
        self.behind_proxy(self.scene.manage_key_command(&arguments))
    }
}

/// An authority's certificate, one that it has signed for AWS's names, and that one's key; PEM.
fn certificates(name: &str) -> (String, String, String) {
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.distinguished_name.push(DnType::CommonName, name);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(HOSTS.map(str::to_owned))
        .unwrap()
        .signed_by(&key, &authority)
        .unwrap();
    (authority.pem(), certificate.pem(), key.serialize_pem())
}

fn text(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    format!(
        "{}{}",
        String::from_utf8_lossy(out),
        String::from_utf8_lossy(err)
    )
}

/// Runs `command`, which must end with `code`; returns what it printed.
fn run(command: &mut Command, code: i32) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let said = text(&output);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    said
}

/// Runs `command` with a code on its standard input.
fn run_with_code(site: &Site, command: &mut Command) -> String {
    let code = site.scene.sandbox.write("code", &site.scene.aws.code());
    let output = command
        .stdin(std::fs::File::open(code).unwrap())
        .output()
        .unwrap();
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    said
}

#[test]
fn the_launcher_goes_through_the_proxy_to_awss_own_hosts() {
    let site = Site::new(Scene::new());
    let mut command = site.behind_proxy(site.scene.command(&["true"]));
    let mut wrapper = site.scene.spawn(&mut command);
    wrapper.give_code(&site.scene.aws);
    wrapper.ends_with(0);
    assert_eq!(site.proxy.hosts(), ["sts.us-east-1.amazonaws.com:443"]);
    assert_eq!(site.scene.aws.calls("GetSessionToken"), 1);
}

#[test]
fn the_broker_goes_through_the_proxy() {
    let site = Site::new(Scene::new().with_broker());
    let broker = Process::start(&mut site.behind_proxy(site.scene.broker_command()));
    broker.wait_for("enter an MFA code");
    write_fifo(site.scene.fifo(), site.scene.aws.code().as_bytes());
    broker.wait_for("is open until");
    broker::generated(&site.scene);
    assert_eq!(
        site.proxy.hosts(),
        [
            "sts.us-east-1.amazonaws.com:443",
            "kms.us-east-1.amazonaws.com:443"
        ]
    );
}

#[test]
fn the_operators_tools_go_through_the_proxy() {
    let site = Site::new(Scene::new());
    run(&mut site.data_keys(), 0);
    assert_eq!(site.proxy.hosts(), ["kms.us-east-1.amazonaws.com:443"]);
    let said = run_with_code(&site, &mut site.manage_key());
    assert!(said.contains("Enabled"), "{said}");
    assert!(
        site.proxy
            .hosts()
            .contains(&"sts.us-east-1.amazonaws.com:443".into())
    );
}

#[test]
fn a_check_asks_the_very_endpoints_of_a_start() {
    let site = Site::new(Scene::new());
    for (variable, sts, kms) in [
        (
            "AWS_PAGER",
            "sts.us-east-1.amazonaws.com",
            "kms.us-east-1.amazonaws.com",
        ),
        (
            "AWS_USE_FIPS_ENDPOINT",
            "sts-fips.us-east-1.amazonaws.com",
            "kms-fips.us-east-1.amazonaws.com",
        ),
        (
            "AWS_USE_DUALSTACK_ENDPOINT",
            "sts.us-east-1.api.aws",
            "kms.us-east-1.api.aws",
        ),
    ] {
        let before = site.proxy.hosts().len();
        let said = run(site.check().env(variable, "true"), 0);
        for (service, host) in [("STS", sts), ("KMS", kms)] {
            let line = format!("{service}: https://{host} answers");
            assert!(said.contains(&line), "{said}");
            assert!(site.proxy.hosts()[before..].contains(&format!("{host}:443")));
        }
        let before = site.proxy.hosts().len();
        let mut command = site.behind_proxy(site.scene.command(&["true"]));
        let mut wrapper = site.scene.spawn(command.env(variable, "true"));
        wrapper.give_code(&site.scene.aws);
        wrapper.ends_with(0);
        assert_eq!(site.proxy.hosts()[before..], [format!("{sts}:443")]);
    }
}

#[test]
fn a_fips_or_dual_stack_endpoint_beside_an_endpoint_url_is_refused_by_name() {
    let scene = Scene::new();
    for (variable, kind) in [
        ("AWS_USE_FIPS_ENDPOINT", "a FIPS endpoint"),
        ("AWS_USE_DUALSTACK_ENDPOINT", "a dual-stack endpoint"),
    ] {
        let mut command = scene.command(&["true"]);
        let output = scene.spawn(command.env(variable, "true")).ends_with(125);
        let expected = format!(
            "both {kind} ({variable}) and the endpoint {} are set",
            scene.aws.endpoint()
        );
        assert!(output.contains(&expected), "{output}");
        assert!(!output.contains("waiting for"), "{output}");
    }
}

#[test]
fn lower_case_names_count_first_and_hosts_of_no_proxy_are_called_directly() {
    let site = Site::new(Scene::new());
    let nobody = "http://127.0.0.1:9";
    run(
        site.check()
            .env("HTTPS_PROXY", nobody)
            .env("https_proxy", site.proxy.url()),
        0,
    );
    assert!(!site.proxy.hosts().is_empty());

    let before = site.proxy.hosts().len();
    let endpoint = site.scene.aws.endpoint();
    for name in ["NO_PROXY", "no_proxy"] {
        let mut command = site.check();
        command
            .env("AWS_ENDPOINT_URL", &endpoint)
            .env(name, "localhost,127.0.0.1");
        run(&mut command, 0);
    }
    assert_eq!(site.proxy.hosts().len(), before);
    run(site.check().env("AWS_ENDPOINT_URL", &endpoint), 0);
    assert!(site.proxy.hosts().len() > before);
}

#[test]
fn a_proxys_password_reaches_the_proxy_and_no_message() {
    let site = Site::new(Scene::new());
    let url = site.proxy.url_with_password("s3cret");
    let said = run(site.check().env("HTTPS_PROXY", &url), 0);
    // "operator:s3cret" in base 64.
    let header = "Basic b3BlcmF0b3I6czNjcmV0";
    assert!(
        site.proxy.heads()[0].contains(header),
        "{:?}",
        site.proxy.heads()
    );
    assert!(!said.contains("s3cret"), "{said}");
    let mut away = site.check();
    away.env("HTTPS_PROXY", "http://operator:s3cret@127.0.0.1:9");
    let said = run(&mut away, 125);
    assert!(said.contains("HTTPS_PROXY is http://127.0.0.1:9"), "{said}");
    assert!(!said.contains("s3cret"), "{said}");
}

#[test]
fn a_proxy_that_is_not_a_url_is_refused_by_name_before_the_prompt() {
    let scene = Scene::new();
    for value in ["socks5://127.0.0.1:1080", "http://", "a b"] {
        let mut command = scene.command(&["true"]);
        let output = scene
            .spawn(command.env("HTTPS_PROXY", value))
            .ends_with(125);
        let expected = "the environment variable HTTPS_PROXY is not the URL of an HTTP proxy";
        assert!(output.contains(expected), "{output}");
        assert!(!output.contains("waiting for"), "{output}");
    }
}

#[test]
fn the_ca_bundle_is_that_of_the_variable_or_the_profile_or_of_openssl() {
    let site = Site::new(Scene::new());
    let profile = format!("[default]\nca_bundle = {}\n", site.authority);
    let profile = site.scene.sandbox.write("aws-config", &profile);
    let trusted = |name: &str, value: &Path| {
        let mut command = site.check();
        command.env_remove("AWS_CA_BUNDLE").env(name, value);
        run(&mut command, 0);
    };
    trusted("AWS_CONFIG_FILE", &profile);
    trusted("SSL_CERT_FILE", Path::new(&site.authority));
    // The variable of the AWS CLI takes the place of both.
    let mut command = site.check();
    command
        .env("AWS_CONFIG_FILE", &profile)
        .env("SSL_CERT_FILE", &site.authority)
        .env("AWS_CA_BUNDLE", &site.another_authority);
    let said = run(&mut command, 125);
    let expected = format!(
        "the certificate of sts.us-east-1.amazonaws.com is not signed by any of those in {} (AWS_CA_BUNDLE)",
        site.another_authority
    );
    assert!(said.contains(&expected), "{said}");
}

#[test]
fn every_program_names_a_file_without_certificates_and_asks_for_no_code() {
    let site = Site::new(Scene::new().with_broker());
    let empty = site.scene.sandbox.write("empty.pem", "");
    let text = site.scene.sandbox.write("text.pem", "no certificate");
    let fifo = site.scene.sandbox.path("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    for (file, why) in [
        (Path::new("/nonexistent/ca.pem"), "No such file"),
        (&empty, "it is empty"),
        (&text, "it has no usable certificate in PEM form"),
        (&fifo, "it is a FIFO, not a regular file"),
        (Path::new("/dev/zero"), "it is a device, not a regular file"),
    ] {
        for variable in ["AWS_CA_BUNDLE", "SSL_CERT_FILE"] {
            let expected = format!(
                "cannot use the CA certificates in {} ({variable}): {why}",
                file.display()
            );
            for (mut command, code) in [
                (site.scene.command(&["true"]), 125),
                (site.scene.broker_command(), 125),
                (site.manage_key(), 125),
                (site.data_keys(), 125),
            ] {
                command.env_remove("AWS_CA_BUNDLE").env(variable, file);
                let said = run(&mut command, code);
                assert!(said.contains(&expected), "{said}");
                assert!(!said.contains("waiting for"), "{said}");
                assert!(!said.contains("enter an MFA code"), "{said}");
            }
        }
    }
}

#[test]
fn a_ca_bundle_that_is_changed_while_a_code_is_awaited_counts_as_it_is_then() {
    let site = Site::new(Scene::new());
    let bundle = site.scene.sandbox.path("bundle.pem");
    fs::copy(&site.another_authority, &bundle).unwrap();
    let start = || {
        let mut command = site.behind_proxy(site.scene.command(&["true"]));
        let wrapper = site.scene.spawn(command.env("AWS_CA_BUNDLE", &bundle));
        wrapper.wait_for_fifo();
        wrapper
    };
    let mut wrapper = start();
    fs::copy(&site.authority, &bundle).unwrap();
    wrapper.give_code(&site.scene.aws);
    wrapper.ends_with(0);

    let wrapper = start();
    fs::remove_file(&bundle).unwrap();
    wrapper.give_code(&site.scene.aws);
    let expected = format!(
        "cannot check the certificate of sts.us-east-1.amazonaws.com: cannot use the CA certificates in {} (AWS_CA_BUNDLE): No such file",
        bundle.display()
    );
    wrapper.process.wait_for(&expected);
}

#[test]
fn a_ca_bundle_that_was_unusable_once_is_read_again() {
    let site = Site::new(Scene::new().with_broker());
    let bundle = site.scene.sandbox.path("bundle.pem");
    fs::copy(&site.authority, &bundle).unwrap();
    let mut command = site.behind_proxy(site.scene.broker_command());
    let broker = Process::start(command.env("AWS_CA_BUNDLE", &bundle));
    broker.wait_for("enter an MFA code");
    write_fifo(site.scene.fifo(), site.scene.aws.code().as_bytes());
    broker.wait_for("is open until");

    let fails = |expected: &str| {
        let message = broker::failure(&site.scene).message;
        assert!(message.contains(expected), "{message}");
    };
    fs::remove_file(&bundle).unwrap();
    fails(&format!(
        "cannot check the certificate of kms.us-east-1.amazonaws.com: cannot use the CA certificates in {} (AWS_CA_BUNDLE): No such file",
        bundle.display()
    ));
    fs::write(&bundle, &fs::read(&site.authority).unwrap()[..100]).unwrap();
    fails("(AWS_CA_BUNDLE): it ends inside a certificate");
    // What is usable may still be only a part of it.
    fs::copy(&site.another_authority, &bundle).unwrap();
    fails("is not signed by any of those in");
    fs::copy(&site.authority, &bundle).unwrap();
    broker::generated(&site.scene);
    // What can be read is kept.
    fs::remove_file(&bundle).unwrap();
    broker::generated(&site.scene);
}

#[test]
fn an_https_endpoint_that_speaks_http_is_named_as_such() {
    let scene = Scene::new();
    let endpoint = scene.aws.endpoint().replace("http://", "https://");
    let mut command = scene.command(&["--check", "true"]);
    let said = run(command.env("AWS_ENDPOINT_URL", &endpoint), 125);
    let host = endpoint.trim_start_matches("https://");
    let expected =
        format!("{host} answers, but does not speak TLS; if that is intended, use http://");
    assert!(said.contains(&expected), "{said}");
    assert!(!said.to_lowercase().contains("proxy"), "{said}");
}

#[test]
fn an_endpoint_with_an_ipv6_address_is_called() {
    let scene = Scene::new();
    let mut scene = scene;
    scene.aws.stop();
    scene.aws.start_again_at("http://[::1]:0");
    let mut command = scene.command(&["--check", "true"]);
    let said = run(command.env("AWS_ENDPOINT_URL", scene.aws.endpoint()), 0);
    assert!(said.contains("STS: http://[::1]:"), "{said}");
}

#[test]
fn a_host_that_cannot_be_reached_is_named_with_its_region_and_the_missing_proxy() {
    let scene = Scene::new().line("region = us-east-1a");
    let mut command = scene.command(&["--check", "true"]);
    command.env_remove("AWS_ENDPOINT_URL");
    let mut alone = after(&["unshare", "--net"], &command);
    let said = run(&mut alone, 125);
    assert!(
        said.contains("cannot resolve sts.us-east-1a.amazonaws.com: "),
        "{said}"
    );
    assert!(
        said.contains("cannot resolve kms.us-east-1a.amazonaws.com: "),
        "{said}"
    );
    assert!(said.contains("(HTTPS_PROXY is not set)"), "{said}");
}

#[test]
fn metadata_never_goes_through_a_proxy() {
    let scene = Scene::with_machine_role("900");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let proxy = format!("http://{}", listener.local_addr().unwrap());
    let mut command = scene.command(&["true"]);
    command
        .env_remove("AWS_ACCESS_KEY_ID")
        .env_remove("AWS_SECRET_ACCESS_KEY")
        .env_remove("AWS_EC2_METADATA_DISABLED")
        .env("AWS_EC2_METADATA_SERVICE_ENDPOINT", scene.aws.endpoint());
    for name in [
        "HTTPS_PROXY",
        "https_proxy",
        "HTTP_PROXY",
        "http_proxy",
        "ALL_PROXY",
    ] {
        command.env(name, &proxy);
    }
    scene.spawn(&mut command).ends_with(0);
    assert!(listener.accept().is_err(), "the proxy was called");
}

#[test]
fn an_endpoint_that_the_servers_user_plants_is_not_called() {
    let site = Site::new(Scene::new().with_broker());
    let planted = Proxy::start("127.0.0.1:9");
    let (home, ran) = site.scene.plant_home(NOBODY, &planted.url());
    let mut command = site.behind_proxy(site.scene.command_as_nobody(&SLEEP));
    let wrapper = site.scene.spawn(command.env("HOME", &home));
    wrapper.give_code(&site.scene.aws);
    wrapper.wait_for_command("sleep");
    broker::generated(&site.scene);
    assert_eq!(planted.heads(), Vec::<String>::new());
    assert!(!ran.exists());
    assert_eq!(
        site.proxy.hosts(),
        [
            "sts.us-east-1.amazonaws.com:443",
            "kms.us-east-1.amazonaws.com:443"
        ]
    );
}

/// A proxy that answers every CONNECT with this status; returns its URL.
fn unwilling_proxy(status: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let _ = client.read(&mut [0; 4096]);
            let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
            let _ = client.write_all(answer.as_bytes());
        }
    });
    url
}

#[test]
fn a_proxy_that_refuses_or_wants_a_password_is_named_with_what_it_wants() {
    let site = Site::new(Scene::new());
    for (status, user, says) in [
        (
            "407 Proxy Authentication Required",
            "",
            "the proxy requires a user and a password",
        ),
        (
            "407 Proxy Authentication Required",
            "user:s3cret@",
            "the proxy does not accept the user and password of its URL",
        ),
        ("403 Forbidden", "", "the proxy refuses the connection"),
    ] {
        let proxy = unwilling_proxy(status);
        let with_user = proxy.replace("://", &format!("://{user}"));
        let said = run(site.check().env("HTTPS_PROXY", &with_user), 125);
        let expected = format!(
            "cannot reach https://sts.us-east-1.amazonaws.com: sts.us-east-1.amazonaws.com: {says}"
        );
        assert!(said.contains(&expected), "{said}");
        assert!(said.contains(&format!("HTTPS_PROXY is {proxy}")), "{said}");
    }
}

#[test]
fn the_key_store_is_reached_through_the_proxy_with_the_private_authority() {
    let scene = Scene::new().with_broker().line("key_store = s3://keys/db1");
    let (authority, certificate, key) = certificates("Company CA");
    let write = |name: &str, text: &str| {
        let path = scene.sandbox.write(name, text);
        path.to_str().unwrap().to_owned()
    };
    let storage = TlsStorage::start(
        &write("certificate.pem", &certificate),
        &write("key.pem", &key),
    );
    let authority = write("authority.pem", &authority);
    let proxy = Proxy::start(&storage.address);
    let through_proxy = || {
        let mut command = scene.broker_command();
        // STS and KMS are at a URL without TLS here, which needs no proxy.
        command
            .env_remove("AWS_ENDPOINT_URL")
            .env("AWS_ENDPOINT_URL_STS", scene.aws.endpoint())
            .env("AWS_ENDPOINT_URL_KMS", scene.aws.endpoint())
            .env("HTTPS_PROXY", proxy.url());
        command
    };
    let start = |authority: Option<&str>| {
        let mut command = through_proxy();
        command.envs(authority.map(|file| ("AWS_CA_BUNDLE", file)));
        let broker = Process::start(&mut command);
        broker.wait_for("enter an MFA code");
        write_fifo(scene.fifo(), scene.aws.code().as_bytes());
        broker
    };
    // An endpoint for all services is one for S3 too.
    let mut command = scene.broker_command();
    let broker = Process::start(command.env("HTTPS_PROXY", proxy.url()));
    broker.wait_for("enter an MFA code");
    write_fifo(scene.fifo(), scene.aws.code().as_bytes());
    let line = broker.wait_for("until this is corrected, no data key can be made");
    assert!(
        line.contains("the answer (HTTP status 404) is not S3's; check the endpoint URL"),
        "{line}"
    );
    drop(broker);
    let line = start(None).wait_for("until this is corrected, no data key can be made");
    assert!(
        line.contains("the certificate of keys.s3.us-east-1.amazonaws.com is not signed by any of the CA certificates of this host"),
        "{line}"
    );
    let broker = start(Some(&authority));
    broker.wait_for("the key store s3://keys/db1 can be used; it has 0 key versions");
    drop(broker);

    // A CA bundle that is unusable for a moment is read again, within the session.
    let bundle = scene.sandbox.path("bundle.pem");
    fs::copy(&authority, &bundle).unwrap();
    let mut command = through_proxy();
    let broker = Process::start(command.env("AWS_CA_BUNDLE", &bundle));
    broker.wait_for("enter an MFA code");
    fs::remove_file(&bundle).unwrap();
    write_fifo(scene.fifo(), scene.aws.code().as_bytes());
    let line = broker.wait_for("until this is corrected, no data key can be made");
    assert!(
        line.contains("cannot check the certificate of keys.s3.us-east-1.amazonaws.com: cannot use the CA certificates in"),
        "{line}"
    );
    fs::copy(&authority, &bundle).unwrap();
    let list = Request::ListKeys(ListKeys {
        after: None,
        context: KeyContext::default(),
    });
    let reply = broker::ask(&scene, &list);
    assert!(matches!(reply, Reply::KeyList { .. }), "{reply:?}");
    for host in proxy.hosts() {
        assert_eq!(host, "keys.s3.us-east-1.amazonaws.com:443");
    }
}
