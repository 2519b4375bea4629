//! Relays behind TLS, and behind the proxies of a company: what a person is told, and that all of
//! the program goes the same way.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use serde_json::json;

use crate::support::*;

/// A name that no resolver knows: only the proxy leads there.
const NAME: &str = "relay.corp.test";
/// Of the proxy's user, as it is written in the URL and as it is sent.
const PASSWORD: &str = "p%40ss-word-4713";
const CREDENTIALS: &str = "dXNlcjpwQHNzLXdvcmQtNDcxMw==";

/// An authority, and certificates of it in files.
struct Authority {
    folder: PathBuf,
    params: CertificateParams,
    key: KeyPair,
}

impl Authority {
    fn new(machine: &Machine) -> Authority {
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let folder = machine.work.clone();
        let made = params.self_signed(&key).expect("a certificate");
        fs::write(folder.join("authority.pem"), made.pem()).expect("written");
        Authority { folder, params, key }
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).to_string_lossy().into_owned()
    }

    /// A server's certificate, for these names and until this year.
    fn server(&self, names: &[&str], year: i32) -> [String; 4] {
        let names: Vec<String> = names.iter().map(|name| name.to_string()).collect();
        let mut params = CertificateParams::new(names).expect("parameters");
        params.not_after = date_time_ymd(year, 1, 1);
        let key = KeyPair::generate().expect("a key");
        let issuer = Issuer::from_params(&self.params, &self.key);
        let made = params.signed_by(&key, &issuer).expect("a certificate");
        self.files(&made.pem(), &key)
    }

    /// The authority's own, as a careless command makes it.
    fn as_server(&self) -> [String; 4] {
        let own = fs::read_to_string(self.path("authority.pem")).expect("reads");
        self.files(&own, &self.key)
    }

    /// Files of their own each time; options of a hub that shows them.
    fn files(&self, certificate: &str, key: &KeyPair) -> [String; 4] {
        let number = fs::read_dir(&self.folder).expect("reads").count();
        let names = ["pem", "key"].map(|kind| self.path(&format!("server-{number}.{kind}")));
        fs::write(&names[0], certificate).expect("written");
        fs::write(&names[1], key.serialize_pem()).expect("written");
        let [certificate, key] = names;
        ["--tls-cert".into(), certificate, "--tls-key".into(), key]
    }
}

/// A hub with these options; waits until it serves.
#[track_caller]
fn hub(machine: &Machine, url: &str, options: &[String]) -> Running {
    let mut arguments = vec!["hub", "--url", url];
    if !options.iter().any(|option| option == "--listen") {
        arguments.extend(["--listen", "127.0.0.1:0"]);
    }
    arguments.extend(options.iter().map(String::as_str));
    let mut running = machine.start(&arguments);
    machine.wait_for_hub(&mut running);
    running
}

/// A proxy that takes CONNECT from whoever knows the password, and leads all names to one port. It
/// keeps the heads that it was sent.
struct Connect {
    port: u16,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Connect {
    fn start(to: u16) -> Connect {
        let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
        let port = listener.local_addr().expect("bound").port();
        let heads: Arc<Mutex<Vec<String>>> = Arc::default();
        let kept = heads.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let kept = kept.clone();
                std::thread::spawn(move || lead(client, to, &kept));
            }
        });
        Connect { port, heads }
    }

    fn heads(&self) -> Vec<String> {
        self.heads.lock().expect("whole").clone()
    }

    /// As a variable names it.
    fn url(&self) -> String {
        format!("http://user:{PASSWORD}@127.0.0.1:{}", self.port)
    }
}

fn lead(mut client: TcpStream, to: u16, heads: &Mutex<Vec<String>>) {
    let (mut head, mut byte) = (Vec::new(), [0u8; 1]);
    while !head.ends_with(b"\r\n\r\n") {
        if client.read(&mut byte).unwrap_or(0) == 0 {
            return;
        }
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let is_known = head.contains(&format!("Proxy-Authorization: Basic {CREDENTIALS}\r\n"));
    heads.lock().expect("whole").push(head);
    if !is_known {
        let _ = client.write_all(b"HTTP/1.1 407 Who are you\r\nContent-Length: 0\r\n\r\n");
        return;
    }
    let Ok(server) = TcpStream::connect(("127.0.0.1", to)) else { return };
    let _ = client.write_all(b"HTTP/1.1 200 Connected\r\nX: y\r\n\r\n");
    let (Ok(mut back), Ok(mut out)) = (server.try_clone(), client.try_clone()) else { return };
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut back, &mut out);
        let _ = out.shutdown(Shutdown::Both);
    });
    let mut server = server;
    let _ = std::io::copy(&mut client, &mut server);
    let _ = server.shutdown(Shutdown::Both);
}

/// All that doctor says.
fn doctor(machine: &Machine) -> String {
    String::from_utf8_lossy(&machine.run(&["doctor"]).stdout).into_owned()
}

/// A second home whose relay has a name that only the proxy knows.
fn beyond(machine: &Machine, scheme: &str, port: u16) -> Machine {
    let far = machine.second_home();
    let token = machine.config()["token"].clone();
    let config = json!({"relayUrl": format!("{scheme}://{NAME}:{port}"), "token": token});
    fs::write(far.home.join("config.json"), config.to_string()).expect("written");
    far
}

/// The variable of the scheme is enough for all of it: commands, the runner, its bus.
fn everything_goes_through_the_proxy(scheme: &str, variable: &str) {
    let mut machine = Machine::new(&format!("proxied-{scheme}"));
    let port = own_port();
    let authority = Authority::new(&machine);
    let mut options = vec!["--listen".to_string(), format!("127.0.0.1:{port}")];
    if scheme == "https" {
        machine.set("SSL_CERT_FILE", &authority.path("authority.pem"));
        options.extend(authority.server(&[NAME, "localhost"], 4000));
    }
    let _hub = hub(&machine, &format!("{scheme}://localhost:{port}"), &options);
    let proxy = Connect::start(port);
    let mut far = beyond(&machine, scheme, port);
    far.set(variable, &proxy.url());

    far.ok(&["agents"]);
    let said = doctor(&far);
    assert!(said.contains("ok    bus") && said.contains(&format!("({variable})")), "{said}");
    let _runner = far.runner("a");
    far.wait_status("a", "idle");
    let id = far.send("a", "through the proxy");
    far.settle(&[id], 60);
    let heads = proxy.heads();
    let first = format!("CONNECT {NAME}:{port} HTTP/1.1\r\n");
    assert!(heads.len() >= 3 && heads.iter().all(|head| head.starts_with(&first)), "{heads:?}");

    // What was written for a person holds no password.
    far.set(variable, &format!("http://user:wrong-{PASSWORD}@127.0.0.1:{}", proxy.port));
    let refused = far.fails(3, &["agents"]);
    assert!(refused.contains(&format!("127.0.0.1:{} ({variable})", proxy.port)), "{refused}");
    assert!(!refused.contains("agent-relay hub"), "the hub is not what is wrong: {refused}");
    let all = [refused, said, doctor(&far), far.logs(), machine.logs()].concat();
    for secret in ["p%40ss", "p@ss", CREDENTIALS] {
        assert!(!all.contains(secret), "{secret}: {all}");
    }
}

#[test]
fn a_relay_behind_a_proxy_of_https_is_reached_by_all_of_the_program() {
    everything_goes_through_the_proxy("https", "HTTPS_PROXY");
}

#[test]
fn a_relay_behind_a_proxy_of_http_is_reached_by_all_of_the_program() {
    everything_goes_through_the_proxy("http", "http_proxy");
}

#[test]
fn doctor_tells_when_the_bus_alone_does_not_get_through() {
    let mut machine = Machine::new("busless");
    let _hub = machine.hub();
    machine.shut_the_bus();
    let url = machine.detour.clone().expect("a way without the bus");
    machine.set("AGENT_RELAY_URL", &url);
    let said = doctor(&machine);
    assert!(said.contains("ok    relay") && said.contains("ok    token"), "{said}");
    assert!(said.contains("warn  bus") && said.contains("Upgrade: websocket"), "{said}");
}

#[test]
fn a_hub_says_when_no_client_takes_its_certificate() {
    let machine = Machine::new("flawed");
    let authority = Authority::new(&machine);
    let trusting = |path: &str| {
        let mut trusting = Machine::new("flawed");
        trusting.set("SSL_CERT_FILE", path);
        trusting
    };
    let known = authority.path("authority.pem");
    let localhost = ["localhost"];
    for (options, url, says, advises) in [
        (authority.server(&localhost, 4000), "https://localhost:1", "", false),
        (authority.as_server(), "https://localhost:1", "authority (CA:TRUE)", true),
        (authority.server(&localhost, 2020), "https://localhost:1", "it has expired", true),
        (authority.server(&localhost, 4000), "https://127.0.0.1:1", "not made out to 127", true),
    ] {
        let said = first_words(&trusting(&known), url, &options);
        assert!(said.contains(says), "{says}: {said}");
        assert_eq!(said.contains("openssl req"), advises, "{says}: {said}");
        assert_eq!(said.is_empty(), says.is_empty(), "{said}");
    }
    // Elsewhere the authority may be known.
    let options = authority.server(&localhost, 4000);
    let said = first_words(&trusting("/nowhere"), "https://localhost:1", &options);
    assert!(said.contains("SSL_CERT_FILE") && !said.contains("openssl"), "{said}");
}

#[test]
fn the_certificate_of_the_command_that_a_hub_gives_is_taken() {
    let mut machine = Machine::new("mended");
    if machine.command("openssl").arg("version").output().is_err() {
        return skip("openssl is missing; install it with: sudo apt-get install openssl");
    }
    let authority = Authority::new(&machine);
    let port = own_port();
    let url = format!("https://127.0.0.1:{port}");
    let shown = authority.as_server();
    let said = first_words(&machine, &url, &shown);
    let command = &said[said.find("openssl req").expect("a command")..];
    let made = machine.command("sh").args(["-c", command.trim()]).output().expect("sh");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    machine.set("SSL_CERT_FILE", &shown[1]);
    let mut options = vec!["--listen".to_string(), format!("127.0.0.1:{port}")];
    // Some editors put a mark in front of what they save.
    options.extend(shown.into_iter().map(|word| match std::fs::read(&word) {
        Ok(bytes) => {
            let marked = format!("{word}.marked");
            std::fs::write(&marked, [b"\xef\xbb\xbf".to_vec(), bytes].concat()).expect("writes");
            marked
        }
        Err(_) => word,
    }));
    let mut running = hub(&machine, &url, &options);
    machine.ok(&["agents"]);
    let said = doctor(&machine);
    assert!(said.contains("ok    bus"), "{said}");
    running.terminate();
    assert_eq!(running.wait(60).1, "");
}

/// What a hub with these options says while it starts.
fn first_words(machine: &Machine, url: &str, options: &[String]) -> String {
    let mut running = hub(machine, url, options);
    running.terminate();
    running.wait(60).1
}

#[test]
fn a_hub_listens_at_an_address_with_its_port() {
    let machine = Machine::new("listen");
    let port = own_port();
    let _hub = hub(
        &machine,
        &format!("http://127.0.0.1:{port}"),
        &["--listen".to_string(), format!("127.0.0.1:{port}")],
    );
    machine.ok(&["agents"]);
    let twice = machine.second_home();
    let said = twice.fails(2, &["hub", "--listen", "127.0.0.1:4850", "--port", "4851"]);
    assert!(said.contains("give the port once"), "{said}");
    let said = twice.fails(2, &["hub", "--listen", "relay.test:1"]);
    assert!(said.contains("[::1]:4850"), "{said}");
}
