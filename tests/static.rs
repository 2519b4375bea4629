//! The static binary by itself: `make statics` builds it and sets STATIC_BIN; all other runs ignore
//! these tests. Names by hosts file and DNS, certificates of the system and of a private authority,
//! also in a chroot that holds nothing else.

use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

#[path = "common/skip.rs"]
mod skip;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::Value;
use skip::skip;

struct Hub {
    child: Child,
    home: PathBuf,
    port: String,
}

impl Drop for Hub {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What `make statics` has built.
fn binary() -> PathBuf {
    PathBuf::from(std::env::var_os("STATIC_BIN").expect("make statics sets STATIC_BIN"))
}

fn folder(name: &str) -> PathBuf {
    let dir =
        std::env::temp_dir().join(format!("agent-relay-static-{}-{name}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).expect("temp dir");
    dir
}

fn hub(binary: &Path, dir: &Path, options: &[&str]) -> Hub {
    let home = dir.join("hub-home");
    let mut command = Command::new(binary);
    command.env_clear().env("AGENT_RELAY_HOME", &home).args(["hub", "--port", "0"]).args(options);
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("starts");
    let mut hub = Hub { child, home, port: String::new() };
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        let text = std::fs::read_to_string(hub.home.join("hub/hub.json")).unwrap_or_default();
        let info: Value = serde_json::from_str(&text).unwrap_or_default();
        if let Some(url) = info["url"].as_str().filter(|_| info["pid"] == hub.child.id()) {
            hub.port = url.rsplit(':').next().expect("a port").into();
            return hub;
        }
        assert!(Instant::now() < until, "the hub starts");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn token(hub: &Hub) -> String {
    let config: Value = serde_json::from_str(
        &std::fs::read_to_string(hub.home.join("config.json")).expect("config"),
    )
    .expect("JSON");
    config["token"].as_str().expect("token").into()
}

/// Asks over HTTP and opens the bus: an answer that does not come is 1, a relay that cannot be
/// reached is 3.
fn bus(command: &mut Command, url: &str, token: &str) -> Output {
    command
        .env_clear()
        .env("AGENT_RELAY_HOME", "/tmp/none")
        .env("AGENT_RELAY_URL", url)
        .env("AGENT_RELAY_TOKEN", token);
    command.args(["send", "user", "--wait", "0", "hello"]).output().expect("runs")
}

#[track_caller]
fn reaches(output: &Output, what: &str) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.code() == Some(1) && text.contains("no answer to message"),
        "{what}: {:?} {text}",
        output.status
    );
}

/// `make defects` builds with known defects; what people get holds neither their names nor the
/// variable that plants them.
#[test]
#[ignore = "make statics runs it"]
fn no_planted_defect_is_in_it() {
    let binary = binary();
    let program = std::fs::read(binary).expect("the binary");
    let holds = |word: &str| program.windows(word.len()).any(|piece| piece == word.as_bytes());
    assert!(holds("AGENT_RELAY_HOME"), "words of the program are found in it");
    let table = include_str!("defects/table.txt");
    let names = table
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once(" | "))
        .map(|(name, _)| name);
    let found: Vec<&str> =
        names.chain(["AGENT_RELAY_PLANTED"]).filter(|name| holds(name)).collect();
    assert!(found.is_empty(), "{found:?}");
}

#[test]
#[ignore = "make statics runs it"]
fn it_is_static_and_small() {
    let binary = binary();
    let bytes = std::fs::read(&binary).expect("reads");
    let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]) as usize;
    let long =
        |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight")) as usize;
    // Program headers of a 64-bit ELF file; type 3 names an interpreter.
    let (first, size, count) = (long(32), word(54), word(56));
    let kinds: Vec<u32> = (0..count)
        .map(|n| {
            u32::from_le_bytes(
                bytes[first + n * size..first + n * size + 4].try_into().expect("four"),
            )
        })
        .collect();
    assert!(!kinds.contains(&3), "it names an interpreter: {kinds:?}");
    assert!(bytes.len() <= 8_300_000, "{} bytes", bytes.len());
    println!("static: {} bytes", bytes.len());
}

#[test]
#[ignore = "make statics runs it"]
fn localhost_is_found() {
    let binary = binary();
    let dir = folder("localhost");
    let hub = hub(&binary, &dir, &[]);
    reaches(
        &bus(&mut Command::new(&binary), &format!("http://localhost:{}", hub.port), &token(&hub)),
        "localhost",
    );
    std::fs::remove_dir_all(dir).expect("clean up");
}

/// A name server that knows one name.
fn name_server(address: &str) -> std::io::Result<()> {
    let socket = UdpSocket::bind((address, 53))?;
    std::thread::spawn(move || {
        let mut query = [0u8; 512];
        while let Ok((size, from)) = socket.recv_from(&mut query) {
            let question = &query[12..size];
            let end = question.iter().position(|byte| *byte == 0).unwrap_or(0) + 5;
            let Some(question) = question.get(..end) else { continue };
            let is_a = question[end - 4..end - 2] == [0, 1];
            let known = String::from_utf8_lossy(question).contains("dns\u{4}test");
            let mut answer = vec![
                query[0],
                query[1],
                0x81,
                if known { 0x80 } else { 0x83 },
                0,
                1,
                0,
                u8::from(known && is_a),
                0,
                0,
                0,
                0,
            ];
            answer.extend_from_slice(question);
            if known && is_a {
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 1]);
            }
            let _ = socket.send_to(&answer, from);
        }
    });
    Ok(())
}

/// In a chroot with nothing but the binary and what a test puts there.
#[test]
#[ignore = "make statics runs it"]
fn an_empty_chroot_is_enough() {
    let binary = binary();
    if !rustix::process::geteuid().is_root() {
        return skip("chroot needs root");
    }
    let dir = folder("chroot");
    let root = dir.join("root");
    fill(&root, &binary);
    name_server("127.0.0.77").expect("a name server on loopback");
    let inside = || {
        let mut command = Command::new("/usr/sbin/chroot");
        command.arg(&root).arg("/agent-relay");
        command
    };
    let plain = hub(&binary, &dir, &[]);
    for name in ["127.0.0.1", "localhost", "relay.test", "dns.test"] {
        reaches(
            &bus(&mut inside(), &format!("http://{name}:{}", plain.port), &token(&plain)),
            name,
        );
    }
    let output = bus(&mut inside(), &format!("http://nobody.test:{}", plain.port), &token(&plain));
    assert_eq!(
        output.status.code(),
        Some(3),
        "an unknown name is not reached: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    drop(plain);

    let (authority, chain, secret) = certificates(&dir);
    let path = |path: &Path| path.to_string_lossy().into_owned();
    let options =
        ["--listen", "127.0.0.1", "--tls-cert", &path(&chain), "--tls-key", &path(&secret)];
    let tls = hub(&binary, &dir, &options);
    let url = |name: &str| format!("https://{name}:{}", tls.port);
    let output = bus(&mut inside(), &url("relay.test"), &token(&tls));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "nobody vouches for it: {text}");
    assert!(text.contains("certificate") || text.contains("UnknownIssuer"), "{text}");
    // Named for this program only.
    std::fs::write(root.join("ca.pem"), &authority).expect("writes");
    let mut command = Command::new("/usr/bin/env");
    command.env_clear().envs([
        ("AGENT_RELAY_HOME", "/tmp/none"),
        ("SSL_CERT_FILE", "/ca.pem"),
        ("AGENT_RELAY_TOKEN", &token(&tls)),
    ]);
    command.env("AGENT_RELAY_URL", url("dns.test")).args([
        "chroot",
        &path(&root),
        "/agent-relay",
        "send",
        "user",
        "--wait",
        "0",
        "hello",
    ]);
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    reaches(&command.output().expect("runs"), "a private authority by SSL_CERT_FILE");
    // Among the system's.
    std::fs::create_dir_all(root.join("etc/ssl/certs")).expect("folder");
    std::fs::write(root.join("etc/ssl/certs/ca-certificates.crt"), &authority).expect("writes");
    reaches(&bus(&mut inside(), &url("relay.test"), &token(&tls)), "the system's authorities");
    drop(tls);
    std::fs::remove_dir_all(dir).expect("clean up");
}

/// The binary, and names that are found without a server and with one.
fn fill(root: &Path, binary: &Path) {
    std::fs::create_dir_all(root.join("etc")).expect("folder");
    std::fs::copy(binary, root.join("agent-relay")).expect("copies");
    std::fs::write(root.join("etc/hosts"), "127.0.0.1 localhost relay.test\n").expect("hosts");
    std::fs::write(
        root.join("etc/resolv.conf"),
        "nameserver 127.0.0.77\noptions timeout:2 attempts:1\n",
    )
    .expect("resolv.conf");
}

/// A private authority, and files with a certificate of it and its key.
fn certificates(dir: &Path) -> (String, PathBuf, PathBuf) {
    let mut params = CertificateParams::new(Vec::<String>::new()).expect("params");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_key = KeyPair::generate().expect("a key");
    let ca = params.self_signed(&ca_key).expect("an authority");
    let key = KeyPair::generate().expect("a key");
    let names = ["relay.test".to_string(), "dns.test".to_string()];
    let leaf = CertificateParams::new(names)
        .expect("params")
        .signed_by(&key, &Issuer::new(params, ca_key))
        .expect("a certificate");
    let (chain, secret) = (dir.join("chain.pem"), dir.join("key.pem"));
    std::fs::write(&chain, leaf.pem()).expect("writes");
    std::fs::write(&secret, key.serialize_pem()).expect("writes");
    (ca.pem(), chain, secret)
}
