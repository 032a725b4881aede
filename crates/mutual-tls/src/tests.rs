use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, GeneralSubtree, IsCa, Issuer, KeyPair,
    NameConstraints, SanType, date_time_ymd,
};
use rustls::{ClientConnection, ServerConnection};
use rustls_pki_types::ServerName;

use super::*;

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Self {
        Self::until(4096)
    }

    fn until(year: i32) -> Self {
        let mut params = CertificateParams::default();
        params.not_after = date_time_ymd(year, 1, 1);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    /// An authority below this one that may only issue certificates of this DNS name.
    fn limited_to(&self, name: &str) -> Self {
        self.limited_to_until(name, 4096)
    }

    fn limited_to_until(&self, name: &str, year: i32) -> Self {
        let mut params = CertificateParams::default();
        params.not_after = date_time_ymd(year, 1, 1);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        params.name_constraints = Some(NameConstraints {
            permitted_subtrees: vec![GeneralSubtree::DnsName(name.into())],
            excluded_subtrees: vec![],
        });
        let key = KeyPair::generate().unwrap();
        let pem = params.signed_by(&key, &self.issuer).unwrap().pem();
        Self {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    fn files(&self, directory: &Path, names: &[&str], authorities: &str, year: i32) -> TlsFiles {
        let mut params = CertificateParams::default();
        params.subject_alt_names = names
            .iter()
            .map(|name| match name.contains(':') {
                true => SanType::URI((*name).try_into().unwrap()),
                false => SanType::DnsName((*name).try_into().unwrap()),
            })
            .collect();
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(year, 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let write = |name: &str, text: &str, mode: u32| {
            let path = directory.join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            path
        };
        TlsFiles {
            certificate: write("certificate.pem", &certificate.pem(), 0o644),
            key: write("key.pem", &key.serialize_pem(), 0o640),
            authorities: write("authorities.pem", authorities, 0o644),
        }
    }
}

fn server(files: &TlsFiles) -> ServerTls {
    ServerTls::for_brokers(files, &Content::read(files).unwrap()).unwrap()
}

/// The certificates that the server got, or the error of either side.
fn handshake(
    server: &ServerTls,
    client: &ClientTls,
) -> Result<Vec<CertificateDer<'static>>, Error> {
    let name = ServerName::try_from("keys1").unwrap();
    let mut client = ClientConnection::new(Arc::clone(&client.config), name).unwrap();
    let mut server = ServerConnection::new(Arc::clone(&server.config)).unwrap();
    while client.is_handshaking() || server.is_handshaking() {
        let mut wire = Vec::new();
        client.write_tls(&mut wire).unwrap();
        server.read_tls(&mut wire.as_slice()).unwrap();
        server.process_new_packets()?;
        wire.clear();
        server.write_tls(&mut wire).unwrap();
        client.read_tls(&mut wire.as_slice()).unwrap();
        client.process_new_packets()?;
    }
    assert_eq!(
        server.protocol_version(),
        Some(rustls::ProtocolVersion::TLSv1_3)
    );
    Ok(server.peer_certificates().unwrap().to_vec())
}

fn client_of(authority: &Authority, names: &[&str], year: i32) -> ClientTls {
    let directory = tempfile::tempdir().unwrap();
    let files = authority.files(directory.path(), names, &authority.pem, year);
    ClientTls::new(&files, &Content::read(&files).unwrap()).unwrap()
}

#[test]
fn both_sides_show_a_certificate_and_the_names_of_the_client_are_its_dns_names_and_uris() {
    let authority = Authority::new();
    let directory = tempfile::tempdir().unwrap();
    let files = authority.files(directory.path(), &["keys1"], &authority.pem, 2200);
    let server = server(&files);
    let client = client_of(&authority, &["DB1.example", "spiffe://example/db1"], 2200);
    let chain = handshake(&server, &client).unwrap();
    let certificate = server.verify(&chain).unwrap();
    assert_eq!(certificate.names, ["db1.example", "spiffe://example/db1"]);
    assert_eq!(certificate.not_after_unix_seconds, 7_258_118_400);
}

#[test]
fn a_certificate_of_another_authority_or_of_the_past_or_for_another_name_is_refused_in_words() {
    let (authority, other) = (Authority::new(), Authority::new());
    let directory = tempfile::tempdir().unwrap();
    let files = authority.files(directory.path(), &["keys1"], &authority.pem, 2200);
    let mut of_other = client_of(&other, &["db1"], 2200);
    // It trusts the server, but the server does not trust it.
    let own = tempfile::tempdir().unwrap();
    let own = other.files(own.path(), &["db1"], &authority.pem, 2200);
    of_other.config = ClientTls::new(&own, &Content::read(&own).unwrap())
        .unwrap()
        .config;
    for (client, expected) in [
        (of_other, "of an authority that is not accepted here"),
        (
            client_of(&authority, &["db1"], 2021),
            "expired at 2021-01-01",
        ),
    ] {
        let error = handshake(&server(&files), &client).unwrap_err();
        assert!(in_words(&error).contains(expected), "{error}");
    }
    let elsewhere = tempfile::tempdir().unwrap();
    let elsewhere = authority.files(elsewhere.path(), &["keys2"], &authority.pem, 2200);
    let client = client_of(&authority, &["db1"], 2200);
    let error = handshake(&server(&elsewhere), &client).unwrap_err();
    let expected = "its certificate is for keys2, not for keys1";
    assert_eq!(in_words(&error), expected);
}

#[test]
fn the_end_of_a_side_is_that_of_the_first_certificate_of_its_chain_that_expires() {
    let authority = Authority::new();
    let intermediate = authority.limited_to_until("db1.example", 2300);
    let directory = tempfile::tempdir().unwrap();
    let end_in = |year, others: &[&str]| {
        let files = intermediate.files(directory.path(), &["db1.example"], &authority.pem, year);
        let chain = fs::read_to_string(&files.certificate).unwrap() + &others.concat();
        fs::write(&files.certificate, chain).unwrap();
        let side = ClientTls::new(&files, &Content::read(&files).unwrap()).unwrap();
        (
            side.certificate.names,
            side.certificate.not_after_unix_seconds,
        )
    };
    let db1_until = |year| {
        let end = date_time_ymd(year, 1, 1).unix_timestamp();
        (vec!["db1.example".into()], end)
    };
    assert_eq!(end_in(2200, &[&intermediate.pem]), db1_until(2200));
    assert_eq!(end_in(5000, &[&intermediate.pem]), db1_until(2300));
    // What nobody needs does not count: another authority, the older certificate of this one, and the authority of the
    // authority, which the other side must have in its own file.
    let other = authority.limited_to_until("db2.example", 2021).pem;
    let older = authority.limited_to_until("db1.example", 2021).pem;
    let root = Authority::until(2021);
    let own = root.limited_to_until("db1.example", 2300).pem;
    let others: [&str; 4] = [&other, &older, &own, &root.pem];
    assert_eq!(end_in(2200, &others), db1_until(2200));
    assert_eq!(end_in(5000, &others), db1_until(2300));
    assert_eq!(end_in(5000, &[]), db1_until(5000));
}

#[test]
fn name_constraints_of_an_intermediate_authority_hold() {
    let authority = Authority::new();
    let of_db1 = authority.limited_to("db1.example");
    let directory = tempfile::tempdir().unwrap();
    let server = server(&authority.files(directory.path(), &["keys1"], &authority.pem, 2200));
    let shake_hands_as = |name| {
        let directory = tempfile::tempdir().unwrap();
        let files = of_db1.files(directory.path(), &[name], &authority.pem, 2200);
        let chain = fs::read_to_string(&files.certificate).unwrap() + &of_db1.pem;
        fs::write(&files.certificate, chain).unwrap();
        let client = ClientTls::new(&files, &Content::read(&files).unwrap()).unwrap();
        handshake(&server, &client)
    };
    assert!(shake_hands_as("db1.example").is_ok());
    let error = shake_hands_as("db2.example").unwrap_err().to_string();
    assert!(error.contains("NameConstraintViolation"), "{error}");
}

#[test]
fn after_a_change_of_authorities_a_certificate_of_the_old_one_is_no_longer_accepted() {
    let (old, new) = (Authority::new(), Authority::new());
    let directory = tempfile::tempdir().unwrap();
    let both = format!("{}{}", old.pem, new.pem);
    let files = old.files(directory.path(), &["keys1"], &both, 2200);
    let chain = handshake(&server(&files), &client_of(&old, &["db1"], 2200)).unwrap();
    assert!(server(&files).verify(&chain).is_ok());
    fs::write(&files.authorities, &new.pem).unwrap();
    let refused = server(&files).verify(&chain).unwrap_err();
    assert!(
        refused.contains("an authority that is not accepted"),
        "{refused}"
    );
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let authority = Authority::new();
    let directory = tempfile::tempdir().unwrap();
    let files = authority.files(directory.path(), &["keys1"], &authority.pem, 2200);
    let failure =
        || match Content::read(&files).and_then(|read| ServerTls::for_brokers(&files, &read)) {
            Ok(_) => panic!("it was accepted"),
            Err(error) => error.to_string(),
        };
    let key = fs::read(&files.key).unwrap();
    fs::write(&files.key, KeyPair::generate().unwrap().serialize_pem()).unwrap();
    assert!(
        failure().contains("is not the key of the certificate"),
        "{}",
        failure()
    );
    fs::write(&files.key, "text").unwrap();
    assert!(
        failure().contains("contains no private key"),
        "{}",
        failure()
    );
    fs::write(&files.key, key).unwrap();
    fs::set_permissions(&files.key, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(
        failure().contains("can be read by every user"),
        "{}",
        failure()
    );
    fs::set_permissions(&files.key, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&files.authorities, "").unwrap();
    assert!(
        failure().contains("contains no certificate"),
        "{}",
        failure()
    );
    fs::remove_file(&files.certificate).unwrap();
    assert!(failure().contains("cannot read"), "{}", failure());
}
