//! TLS for `https`.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::{
    ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme, client::Resumption,
};

use super::Bad;
use crate::control::health::spec::TlsSpec;
use crate::control::health::transport::Stream;

pub struct Tls {
    config: Arc<ClientConfig>,
    /// `None`: the address.
    name: Option<ServerName<'static>>,
}

impl Tls {
    /// `host`: of the requests.
    ///
    /// # Errors
    /// One sentence about a file.
    pub fn new(spec: &TlsSpec, host: Option<&str>) -> Result<Tls, String> {
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone());
        let builder = builder.with_safe_default_protocol_versions().map_err(|error| error.to_string())?;
        let builder = match &spec.ca {
            Some(path) => builder.with_root_certificates(roots(path)?),
            None => builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider))),
        };
        let mut config = match &spec.client {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain = certificates(certificate)?;
                let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| format!("the key {key}: {error}"))?;
                builder
                    .with_client_auth_cert(chain, secret)
                    .map_err(|error| format!("{certificate} and {key}: {error}"))?
            }
        };
        // Every probe asks anew, and 20,000 of them remember nothing.
        config.resumption = Resumption::disabled();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        // The host may have a port behind it.
        let of_host = host.map(|host| host.split(':').next().unwrap_or(host));
        let name = spec.sni.as_deref().or(of_host).and_then(|name| ServerName::try_from(name.to_owned()).ok());
        Ok(Tls { config: Arc::new(config), name })
    }

    pub async fn handshake<S: Stream>(&self, stream: S, address: IpAddr) -> Result<TlsStream<S>, Bad> {
        let name = self.name.clone().unwrap_or_else(|| ServerName::IpAddress(address.into()));
        let connected = TlsConnector::from(self.config.clone()).connect(name, stream).await;
        connected.map_err(|error| alert(&error).unwrap_or_else(|| error.into()))
    }
}

/// What TLS has against the other end, if that is what an error is about. With TLS 1.3 it may come when the handshake is over.
pub fn alert(error: &io::Error) -> Option<Bad> {
    let error = error.get_ref()?.downcast_ref::<Error>()?;
    Some(Bad::Server(format!("TLS: {error}")))
}

fn roots(path: &str) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|error| format!("the CA {path}: {error}"))?;
    }
    Ok(roots)
}

/// At least one.
fn certificates(path: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let certificates = read.map_err(|error| format!("{path}: {error}"))?;
    if certificates.is_empty() { Err(format!("{path} has no certificate in PEM form")) } else { Ok(certificates) }
}

/// Takes any certificate, whoever signed it and for whatever name; that the server has its key is still proved.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
