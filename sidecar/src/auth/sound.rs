//! Whether a public key is one for which its owner alone can sign, as far as
//! that can be seen of it. Whoever has such a key in its set has a fault to
//! mend; until then no token by that key is believed.

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, ParsedPublicKey,
    VerificationAlgorithm,
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve};

/// Bits of an RSA modulus: what is shorter can be factored (RFC 7518 §3.3), what
/// is longer costs us too much.
const MODULUS: std::ops::RangeInclusive<usize> = 2048..=8192;
/// Longest exponent, in bytes.
const EXPONENT: usize = 4;
/// By these primes, moduli of ROCA (CVE-2017-15361) are powers of 65537; of
/// others, one in 200 million is.
const ROCA: [u32; 17] = [
    11, 13, 17, 19, 37, 53, 61, 71, 73, 79, 97, 103, 107, 109, 127, 151, 157,
];

/// Whether tokens by this key may be believed.
pub fn is_sound(key: &AlgorithmParameters) -> bool {
    match key {
        AlgorithmParameters::RSA(key) => {
            let numbers = decode(&key.n).zip(decode(&key.e));
            numbers.is_some_and(|(modulus, exponent)| is_rsa(&modulus, &exponent))
        }
        AlgorithmParameters::EllipticCurve(key) => {
            let point = decode(&key.x).zip(decode(&key.y));
            point.is_some_and(|(x, y)| is_on_curve(&key.curve, &x, &y))
        }
        // RFC 8037 §2; of another length, it would be read as a certificate's.
        AlgorithmParameters::OctetKeyPair(key) => {
            decode(&key.x).is_some_and(|x| x.len() == 32 && can_be_read(&ED25519, &x))
        }
        _ => false,
    }
}

fn decode(number: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(number).ok()
}

/// RFC 7518 §6.3.1: both without leading zeros.
fn is_rsa(modulus: &[u8], exponent: &[u8]) -> bool {
    let is_odd = |number: &[u8]| number.last().is_some_and(|last| last % 2 == 1);
    let bits = |number: &[u8]| match number.first() {
        None | Some(0) => 0,
        Some(first) => number.len() * 8 - first.leading_zeros() as usize,
    };
    MODULUS.contains(&bits(modulus))
        && is_odd(modulus)
        && !is_roca(modulus)
        // By 1, everyone signs.
        && bits(exponent) > 1
        && exponent.len() <= EXPONENT
        && is_odd(exponent)
}

fn is_roca(modulus: &[u8]) -> bool {
    ROCA.iter().all(|prime| {
        let rest = modulus
            .iter()
            .fold(0, |rest, byte| (rest * 256 + u32::from(*byte)) % prime);
        let powers = std::iter::successors(Some(1), |power| Some(power * 65537 % prime));
        powers.take(*prime as usize).any(|power| power == rest)
    })
}

/// RFC 7518 §6.2.1: both coordinates are as long as the field.
fn is_on_curve(curve: &EllipticCurve, x: &[u8], y: &[u8]) -> bool {
    let (length, algorithm): (_, &'static dyn VerificationAlgorithm) = match curve {
        EllipticCurve::P256 => (32, &ECDSA_P256_SHA256_FIXED),
        EllipticCurve::P384 => (48, &ECDSA_P384_SHA384_FIXED),
        _ => return false,
    };
    let point = [&[4][..], x, y].concat(); // SEC 1 §2.3.3, uncompressed.
    x.len() == length && y.len() == length && can_be_read(algorithm, &point)
}

fn can_be_read(algorithm: &'static dyn VerificationAlgorithm, key: &[u8]) -> bool {
    ParsedPublicKey::new(algorithm, key).is_ok()
}
