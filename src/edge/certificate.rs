//! Whether clients of ours take the certificate of a server: looked at by the rules that they have.

use std::net::IpAddr;
use std::path::Path;

use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, Error, RootCertStore};

use crate::provider::text::shell_quoted;

/// Days that a certificate which we propose is good for.
const DAYS: u32 = 825;

/// What is wrong with it.
#[derive(Debug, Clone, PartialEq)]
pub enum Flaw {
    /// No client takes it, for this reason.
    Unusable(String),
    /// It is not made out to the host that clients connect to.
    OtherName,
    /// This machine does not know who signed it; a client takes it only where that is known.
    UnknownIssuer,
}

/// A file of certificates or keys, without the mark that some editors put in front.
pub(super) fn pem(path: &Path) -> Result<Vec<u8>, String> {
    let bytes =
        std::fs::read(path).map_err(|error| format!("cannot use {}: {error}", path.display()))?;
    Ok(bytes.strip_prefix(b"\xef\xbb\xbf").map(<[u8]>::to_vec).unwrap_or(bytes))
}

/// A chain of certificates, PEM.
pub fn chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let bad = |error: &dyn std::fmt::Display| format!("cannot use {}: {error}", path.display());
    let chain = CertificateDer::pem_slice_iter(&pem(path)?)
        .collect::<Result<Vec<CertificateDer<'static>>, _>>()
        .map_err(|error| bad(&error))?;
    if chain.is_empty() {
        return Err(bad(&"it holds no certificate (PEM)"));
    }
    Ok(chain)
}

/// What a client that knows these authorities says of a server that shows this chain as `host`.
pub fn flaw(
    chain: &[CertificateDer<'static>],
    host: &str,
    roots: &RootCertStore,
    now: UnixTime,
) -> Option<Flaw> {
    let (first, others) = chain.split_first()?;
    let parsed = match ParsedCertificate::try_from(first) {
        Ok(parsed) => parsed,
        Err(error) => return Some(Flaw::Unusable(error.to_string())),
    };
    let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms.all;
    let signed =
        verify_server_cert_signed_by_trust_anchor(&parsed, roots, others, now, algorithms).err();
    match signed {
        None | Some(Error::InvalidCertificate(CertificateError::UnknownIssuer)) => {}
        Some(error) => return Some(Flaw::Unusable(in_words(&error))),
    }
    let name = ServerName::try_from(host.to_string()).ok();
    if !name.is_some_and(|name| verify_server_name(&parsed, &name).is_ok()) {
        return Some(Flaw::OtherName);
    }
    signed.map(|_| Flaw::UnknownIssuer)
}

fn in_words(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        ) => "it has expired".into(),
        Error::InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        ) => "it is not valid yet; look at the clock of this machine".into(),
        error if format!("{error:?}").contains("CaUsedAsEndEntity") => {
            "it is the certificate of an authority (CA:TRUE), not of a server".into()
        }
        error => error.to_string(),
    }
}

/// A command that makes a certificate and a key which clients take once they know it.
pub fn command(certificate: &Path, key: &Path, host: &str) -> String {
    let kind = if host.parse::<IpAddr>().is_ok() { "IP" } else { "DNS" };
    let (certificate, key) = (certificate.to_string_lossy(), key.to_string_lossy());
    format!(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days {DAYS} \
         -subj {} -addext {} -addext basicConstraints=critical,CA:FALSE -keyout {} -out {}",
        word(&format!("/CN={host}")),
        word(&format!("subjectAltName={kind}:{host}")),
        word(&key),
        word(&certificate)
    )
}

/// A word of a shell's command line, quoted where it needs that.
fn word(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/=:.,_-".contains(c);
    if text.chars().all(is_plain) { text.to_string() } else { shell_quoted(text) }
}
