//! Issuers for tests: keys of each kind, and tokens that say anything. What is
//! signed here is signed without the library that verifies it.

use std::sync::LazyLock;

use aws_lc_rs::{
    encoding::{AsDer, PublicKeyX509Der},
    rand::SystemRandom,
    rsa::{KeyPair as RsaKeyPair, KeySize},
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair,
        Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256, RSA_PKCS1_SHA384, RSA_PSS_SHA256, RsaEncoding,
    },
};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use crds::SigningAlgorithm;
use futures::executor::block_on;
use http::{HeaderMap, HeaderValue, header::AUTHORIZATION};
use jsonwebtoken::{
    DecodingKey,
    jwk::{AlgorithmParameters, Jwk},
};
use policy::{
    Bundle, Caller, Context, Reason,
    bundle::{Claims, Issuer, Types},
};
use serde_json::{Value, json};

use crate::{auth::Authenticator, issuers::Issuers};

pub const NOW: u64 = 1_800_000_000;
pub const AUDIENCE: &str = "https://orders.example/mcp";
/// Issues access tokens (RFC 9068) only, by keys of each kind.
pub const ACME: &str = "https://acme.example/realms/a";
/// Issues tokens of type `JWT`; its names of users and groups are its own.
pub const OTHER: &str = "https://other.example";
/// Has roles where Keycloak has them.
pub const NESTED: &str = "https://nested.example/realms/b";
/// Signs by ES256 only.
pub const ES: &str = "https://es.example";
/// Signs by RS256 only.
pub const RS: &str = "https://rs.example";
pub const CLUSTER: &str = "https://kubernetes.default.svc.cluster.local";

/// What a table says of a token.
pub type Expected = Result<(), Reason>;
/// A name, a token, and what becomes of it.
pub type Case = (String, String, Expected);

/// A private key.
pub enum Key {
    Ec(EcdsaKeyPair),
    Ec384(EcdsaKeyPair),
    Ed(Ed25519KeyPair),
    Rsa(RsaKeyPair),
}

pub fn encode(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

pub fn decode(text: &str) -> Vec<u8> {
    URL_SAFE_NO_PAD.decode(text).unwrap()
}

impl Key {
    pub fn ec() -> Self {
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING);
        Self::Ec(key.unwrap())
    }

    pub fn ec384() -> Self {
        let key = EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING);
        Self::Ec384(key.unwrap())
    }

    pub fn ed() -> Self {
        Self::Ed(Ed25519KeyPair::generate().unwrap())
    }

    pub fn rsa() -> Self {
        Self::Rsa(RsaKeyPair::generate(KeySize::Rsa2048).unwrap())
    }

    /// The public key, for a set.
    pub fn jwk(&self, id: &str) -> Value {
        let point = |curve: &str, point: &[u8]| {
            let (x, y) = point[1..].split_at(point.len() / 2);
            json!({"kty": "EC", "crv": curve, "x": encode(x), "y": encode(y), "kid": id})
        };
        match self {
            Self::Ec(key) => point("P-256", key.public_key().as_ref()),
            Self::Ec384(key) => point("P-384", key.public_key().as_ref()),
            Self::Ed(key) => {
                json!({"kty": "OKP", "crv": "Ed25519", "x": encode(key.public_key()), "kid": id})
            }
            Self::Rsa(key) => {
                let key = DecodingKey::from_rsa_der(key.public_key().as_ref());
                let jwk = Jwk::from_decoding_key(&key, None).unwrap();
                let AlgorithmParameters::RSA(key) = jwk.algorithm else {
                    unreachable!()
                };
                json!({"kty": "RSA", "n": key.n, "e": key.e, "kid": id})
            }
        }
    }

    /// The public key, as in a certificate.
    pub fn der(&self) -> Vec<u8> {
        let of = |der: Result<PublicKeyX509Der<'_>, _>| der.unwrap().as_ref().to_vec();
        match self {
            Self::Ec(key) | Self::Ec384(key) => of(key.public_key().as_der()),
            Self::Ed(key) => of(key.public_key().as_der()),
            Self::Rsa(key) => of(key.public_key().as_der()),
        }
    }

    /// The public key, as in a file.
    pub fn pem(&self) -> String {
        let lines = STANDARD.encode(self.der());
        let lines: Vec<_> = lines.as_bytes().chunks(64).collect();
        let lines: Vec<_> = lines
            .iter()
            .map(|line| str::from_utf8(line).unwrap())
            .collect();
        format!(
            "-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n",
            lines.join("\n")
        )
    }

    /// A signature; under an algorithm that is not its own, it signs as it does.
    pub fn sign(&self, algorithm: &str, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match self {
            Self::Ec(key) | Self::Ec384(key) => {
                key.sign(&random, message).unwrap().as_ref().to_vec()
            }
            Self::Ed(key) => key.sign(message).as_ref().to_vec(),
            Self::Rsa(key) => {
                let encoding: &'static dyn RsaEncoding = match algorithm {
                    "PS256" => &RSA_PSS_SHA256,
                    "RS384" => &RSA_PKCS1_SHA384,
                    _ => &RSA_PKCS1_SHA256,
                };
                let mut signature = vec![0; key.public_modulus_len()];
                key.sign(encoding, &random, message, &mut signature)
                    .unwrap();
                signature
            }
        }
    }

    /// A token of this header and payload, as they stand.
    pub fn token(&self, header: impl AsRef<[u8]>, payload: impl AsRef<[u8]>) -> String {
        let read: Value = serde_json::from_slice(header.as_ref()).unwrap_or_default();
        let algorithm = read["alg"].as_str().unwrap_or_default();
        let signed = format!("{}.{}", encode(&header), encode(&payload));
        self.sign_text(algorithm, &signed)
    }

    /// Signs what is encoded already.
    pub fn sign_text(&self, algorithm: &str, signed: &str) -> String {
        let signature = self.sign(algorithm, signed.as_bytes());
        format!("{signed}.{}", encode(signature))
    }
}

/// `base` with members that are replaced; null: left out.
pub fn with(mut base: Value, changes: &Value) -> Value {
    for (name, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => drop(base.as_object_mut().unwrap().remove(name)),
            value => base[name] = value.clone(),
        }
    }
    base
}

/// The header of an access token by the key `ec` of acme.
pub fn header() -> Value {
    json!({"alg": "ES256", "typ": "at+jwt", "kid": "ec"})
}

/// The claims of an access token of acme.
pub fn claims() -> Value {
    json!({
        "iss": ACME, "sub": "alice", "aud": AUDIENCE, "iat": NOW, "exp": NOW + 300,
        "client_id": "agent", "jti": "1", "groups": ["staff"], "scope": "orders:read",
    })
}

pub fn claims_of(issuer: &str) -> Value {
    with(claims(), &json!({"iss": issuer}))
}

/// Issuers with their keys, and who knows them.
pub struct World {
    pub ec: Key,
    pub rsa: Key,
    pub ed: Key,
    pub other: Key,
    pub cluster: Key,
    /// Nobody's.
    pub stranger: Key,
    pub bundle: Bundle,
    pub authenticator: Authenticator,
}

pub static WORLD: LazyLock<World> = LazyLock::new(World::new);

impl World {
    fn new() -> Self {
        let (ec, rsa, ed) = (Key::ec(), Key::rsa(), Key::ed());
        let (other, cluster, stranger) = (Key::ec(), Key::ec(), Key::ec());
        let pinned = with(rsa.jwk("rsa-256"), &json!({"alg": "RS256", "use": "sig"}));
        let mut acme = Issuer::inline(
            "acme",
            ACME,
            json!({"keys": [ec.jwk("ec"), rsa.jwk("rsa"), pinned, ed.jwk("ed")]}),
        );
        acme.types = Types::default();
        let mut others = Issuer::inline("other", OTHER, json!({"keys": [other.jwk("other")]}));
        let own = |path: &str| Some(path.to_owned());
        others.claims = Claims {
            user: own("email"),
            agent: own("client.id"),
            groups: own("https://acme.example/groups"),
            scopes: own("scp"),
        };
        let mut nested = Issuer::inline("nested", NESTED, json!({"keys": [other.jwk("nested")]}));
        nested.claims.groups = own("realm_access.roles");
        let both = json!({"keys": [ec.jwk("ec"), rsa.jwk("rsa")]});
        let mut es = Issuer::inline("es", ES, both.clone());
        es.algorithms = vec![SigningAlgorithm::ES256];
        let mut rs = Issuer::inline("rs", RS, both);
        rs.algorithms = vec![SigningAlgorithm::RS256];
        let platform = Issuer::cluster(CLUSTER, json!({"keys": [cluster.jwk("cluster")]}));
        let bundle = bundle(
            vec![acme, others, nested, es, rs, platform.clone()],
            Some(platform),
        );
        let authenticator = Authenticator::new(&bundle, &Issuers::default());
        Self {
            ec,
            rsa,
            ed,
            other,
            cluster,
            stranger,
            bundle,
            authenticator,
        }
    }

    /// An access token of acme, with changes of header and claims.
    pub fn acme(&self, header_changes: &Value, changes: &Value) -> String {
        let header = with(header(), header_changes).to_string();
        self.ec.token(header, with(claims(), changes).to_string())
    }

    /// A token of the issuer with names of its own.
    pub fn of_other(&self, changes: &Value) -> String {
        let claims = json!({
            "iss": OTHER, "sub": "17", "email": "bob@other.example", "aud": AUDIENCE,
            "iat": NOW, "exp": NOW + 300,
        });
        let header = json!({"alg": "ES256", "typ": "JWT", "kid": "other"}).to_string();
        self.other.token(header, with(claims, changes).to_string())
    }

    /// A service account's token.
    pub fn of_cluster(&self, changes: &Value) -> String {
        let claims = json!({
            "iss": CLUSTER, "sub": "system:serviceaccount:agents:reporter", "aud": [AUDIENCE],
            "iat": NOW, "nbf": NOW, "exp": NOW + 600,
            "kubernetes.io": {"namespace": "agents", "pod": {"name": "reporter-0", "uid": "1"}},
        });
        let header = json!({"alg": "ES256", "kid": "cluster"}).to_string();
        self.cluster
            .token(header, with(claims, changes).to_string())
    }

    pub fn caller(&self, token: &str) -> Result<Caller, Reason> {
        authenticate(&self.authenticator, &bearer(token), NOW)
    }
}

/// A server that accepts these issuers.
pub fn bundle(issuers: Vec<Issuer>, cluster: Option<Issuer>) -> Bundle {
    let context = Context {
        default_url: AUDIENCE.into(),
        ..Context::default()
    };
    let mut bundle = policy::deny_all("shop", "orders", &context, "test");
    bundle.authentication.issuers = issuers;
    bundle.cluster = cluster;
    bundle
}

pub fn bearer(token: &str) -> HeaderMap {
    let value = HeaderValue::from_str(&format!("Bearer {token}")).unwrap();
    HeaderMap::from_iter([(AUTHORIZATION, value)])
}

/// Where keys are not fetched, there is nothing to wait for.
pub fn authenticate(
    authenticator: &Authenticator,
    headers: &HeaderMap,
    now: u64,
) -> Result<Caller, Reason> {
    block_on(authenticator.authenticate(headers, now)).map(|caller| Caller::clone(&caller))
}
