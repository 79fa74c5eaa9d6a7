//! One question to the cluster's DNS server: enough to know that it answers,
//! and to resolve a Service's name from the host.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::net::UdpSocket;

const ANSWER_TIME: Duration = Duration::from_secs(2);

/// The first address of a full name.
pub async fn resolve(server: Ipv4Addr, name: &str) -> Result<Ipv4Addr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
    socket.connect((server, 53)).await?;
    socket
        .send(&question(name))
        .await
        .context("cannot send to the DNS server")?;
    let mut answer = [0_u8; 512];
    let length = tokio::time::timeout(ANSWER_TIME, socket.recv(&mut answer))
        .await
        .with_context(|| format!("no answer from the DNS server {server}"))?
        .with_context(|| format!("no DNS server at {server}"))?;
    address(&answer[..length]).with_context(|| format!("asked {server} for {name}"))
}

/// A query for the A record of a name.
fn question(name: &str) -> Vec<u8> {
    let mut query = vec![0x54, 0x57, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.trim_end_matches('.').split('.') {
        query.push(u8::try_from(label.len()).unwrap_or(63));
        query.extend(label.as_bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    query
}

/// The address in an answer. CoreDNS puts the A record last, and an A
/// record's data is its last four bytes, unless additional records follow.
fn address(answer: &[u8]) -> Result<Ipv4Addr> {
    let Some(head) = answer.get(..12) else {
        bail!("the answer is cut off")
    };
    let code = head[3] & 0x0f;
    let answers = u16::from_be_bytes([head[6], head[7]]);
    if code != 0 || answers == 0 {
        bail!("the answer has code {code} and {answers} records");
    }
    match answer {
        [.., 0, 4, a, b, c, d] => Ok(Ipv4Addr::new(*a, *b, *c, *d)),
        _ => bail!("the answer does not end with an address"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_has_labels() {
        let query = question("a.bc.");
        assert_eq!(query[12..], [1, b'a', 2, b'b', b'c', 0, 0, 1, 0, 1]);
    }

    #[test]
    fn answers() {
        let mut ok = vec![0, 0, 0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0];
        ok.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4, 10, 100, 0, 1]);
        assert_eq!(address(&ok).expect("address"), Ipv4Addr::new(10, 100, 0, 1));
        ok[3] = 0x83;
        assert!(
            address(&ok)
                .expect_err("NXDOMAIN")
                .to_string()
                .contains("code 3")
        );
        assert!(address(&[1, 2]).is_err());
    }
}
