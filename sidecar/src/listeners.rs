//! Who listens in the pod beyond loopback: each such port is a way around the
//! sidecar, unless something keeps others from it.
//!
//! Invariants: what is read is bounded, and a table that cannot be read whole
//! counts for nothing: it could hide a port.

use std::{
    io,
    net::{IpAddr, Ipv6Addr},
    path::Path,
};

use policy::report::{ListenerReport, MAX_LISTENERS};

use crate::{
    peer,
    server::{ADMIN_PORT, MCP_PORT},
    source,
};

/// Largest table, in bytes: some 100,000 sockets. It has those of connections too.
const MAX_TABLE: usize = 16 * 1024 * 1024;
/// The sidecar's own ports in a pod.
const OWN: [u16; 3] = [MCP_PORT, ADMIN_PORT, peer::PORT];
/// `TCP_LISTEN` of the kernel, as its tables have it.
const LISTENING: &str = "0A";

/// TCP sockets of the pod that listen beyond loopback, but for the sidecar's: in
/// order, at most [`MAX_LISTENERS`]. None where they cannot be read.
pub fn of_pod() -> Option<Vec<ListenerReport>> {
    match tables() {
        Ok([four, six]) => among(&[&four, &six]),
        Err(error) => {
            tracing::debug!(%error, "the pod's sockets cannot be read");
            None
        }
    }
}

fn tables() -> io::Result<[Vec<u8>; 2]> {
    let four = source::read(Path::new("/proc/net/tcp"), MAX_TABLE)?;
    let six = match source::read(Path::new("/proc/net/tcp6"), MAX_TABLE) {
        // A kernel without IPv6.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        six => six?,
    };
    Ok([four, six])
}

fn among(tables: &[&[u8]]) -> Option<Vec<ListenerReport>> {
    let mut found = Vec::new();
    for table in tables {
        // The first line is a heading.
        for line in str::from_utf8(table).ok()?.lines().skip(1) {
            let (listener, state) = socket(line)?;
            let is_open = !listener.address.is_loopback() && !OWN.contains(&listener.port);
            if state == LISTENING && is_open {
                found.push(listener);
            }
        }
    }
    found.sort();
    found.dedup();
    found.truncate(MAX_LISTENERS);
    Some(found)
}

/// `sl local_address rem_address st …` of a line: its own end, and its state.
fn socket(line: &str) -> Option<(ListenerReport, &str)> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let (local, _, state) = (fields.next()?, fields.next()?, fields.next()?);
    let (address, port) = local.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let address = address_of(address)?;
    Some((ListenerReport { address, port }, state))
}

/// The kernel writes the 32-bit words of an address as numbers of this machine:
/// their bytes in memory are those of the address.
fn address_of(hex: &str) -> Option<IpAddr> {
    let word = |digits: &[u8]| {
        let digits = str::from_utf8(digits).ok().filter(|text| text.len() == 8)?;
        Some(u32::from_str_radix(digits, 16).ok()?.to_ne_bytes())
    };
    let words: Option<Vec<_>> = hex.as_bytes().chunks(8).map(word).collect();
    let bytes = words?.concat();
    let address = match bytes.len() {
        4 => IpAddr::V4(<[u8; 4]>::try_from(bytes).ok()?.into()),
        16 => Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).to_canonical(),
        _ => return None,
    };
    Some(address)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const HEAD: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";

    /// A table as the kernel writes it, of addresses, ports and states.
    fn table(sockets: &[(IpAddr, u16, &str)]) -> String {
        let line = |(index, (address, port, state)): (usize, &(IpAddr, u16, &str))| {
            let bytes = match address {
                IpAddr::V4(address) => address.octets().to_vec(),
                IpAddr::V6(address) => address.octets().to_vec(),
            };
            let word = |word: &[u8]| {
                let number = u32::from_ne_bytes(word.try_into().unwrap());
                format!("{number:08X}")
            };
            let words: String = bytes.chunks(4).map(word).collect();
            let nobody = "0".repeat(words.len());
            format!(
                "{index:4}: {words}:{port:04X} {nobody}:0000 {state} 00000000:00000000 00:00000000 00000000     0        0 1657 1 000000004f72ab58 100 0 0 10 0\n"
            )
        };
        let lines: String = sockets.iter().enumerate().map(line).collect();
        format!("{HEAD}{lines}")
    }

    fn found(table: &str) -> Option<Vec<String>> {
        let found = among(&[table.as_bytes()])?;
        let text = |it: &ListenerReport| format!("{} {}", it.address, it.port);
        Some(found.iter().map(text).collect())
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// Lines of a real kernel, of a machine whose least byte comes first.
    #[test]
    #[cfg(target_endian = "little")]
    fn addresses_are_read_in_the_kernels_order() {
        for (hex, expected) in [
            ("00000000", "0.0.0.0"),
            ("0100007F", "127.0.0.1"),
            ("0500630A", "10.99.0.5"),
            ("00000000000000000000000000000000", "::"),
            ("00000000000000000000000001000000", "::1"),
            (
                "B80D01200000000067452301EFCDAB89",
                "2001:db8::123:4567:89ab:cdef",
            ),
            ("0000000000000000FFFF00000500630A", "10.99.0.5"),
            ("0000000000000000FFFF00000100007F", "127.0.0.1"),
        ] {
            assert_eq!(address_of(hex), Some(ip(expected)), "{hex}");
        }
    }

    #[test]
    fn what_listens_beyond_loopback_is_found() {
        let listens = |address: &str, port: u16| (ip(address), port, LISTENING);
        let sockets = [
            listens("0.0.0.0", 8080),
            listens("127.0.0.1", 8081),
            listens("127.8.8.8", 8082),
            listens("10.99.0.5", 3000),
            // A connection, and one that ended.
            (ip("10.99.0.5"), 5000, "01"),
            (ip("10.99.0.5"), 5001, "06"),
            // The sidecar's.
            listens("0.0.0.0", 9440),
            listens("0.0.0.0", 9441),
            listens("0.0.0.0", 9442),
        ];
        let expected = ["0.0.0.0 8080", "10.99.0.5 3000"].map(str::to_owned);
        assert_eq!(found(&table(&sockets)), Some(expected.to_vec()));

        let sockets = [
            listens("::", 9440),
            listens("::1", 8081),
            listens("::ffff:127.0.0.1", 8082),
            listens("::ffff:10.99.0.5", 3000),
            listens("fe80::1", 3001),
            listens("::", 8080),
        ];
        let expected = ["10.99.0.5 3000", ":: 8080", "fe80::1 3001"].map(str::to_owned);
        assert_eq!(found(&table(&sockets)), Some(expected.to_vec()));
        assert_eq!(found(HEAD), Some(Vec::new()));
        assert_eq!(found(""), Some(Vec::new()), "a kernel without IPv6");
    }

    #[test]
    fn both_tables_make_one_list_that_is_bounded() {
        let many: Vec<_> = (1..200)
            .map(|port| (ip("0.0.0.0"), port, LISTENING))
            .collect();
        let (many, same) = (table(&many), table(&[(ip("::ffff:0.0.0.0"), 1, LISTENING)]));
        let found = among(&[many.as_bytes(), same.as_bytes()]).unwrap();
        assert_eq!(found.len(), MAX_LISTENERS);
        assert!(found.is_sorted_by(|a, b| a < b));
    }

    /// What is not understood could be a port.
    #[test]
    fn a_table_that_cannot_be_read_says_nothing() {
        for line in [
            "",
            "   0:",
            "   0: 00000000:1F90 00000000:0000",
            "   0: 00000000 00000000:0000 0A",
            "   0: 0000:1F90 00000000:0000 0A",
            "   0: 000000000000:1F90 00000000:0000 0A",
            "   0: 0000000000000000:1F90 00000000:0000 0A",
            "   0: 0000000X:1F90 00000000:0000 0A",
            "   0: 00000000:1F900 00000000:0000 0A",
        ] {
            assert_eq!(found(&format!("{HEAD}{line}\n")), None, "{line}");
        }
        assert_eq!(among(&[b"head\n\xff\n"]), None);
    }

    /// Wherever this runs.
    #[test]
    fn the_real_tables_are_read() {
        let open = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
        let port = open.local_addr().unwrap().port();
        let found = of_pod().unwrap();
        let is_full = found.len() == MAX_LISTENERS;
        let has = found
            .iter()
            .any(|it| it.port == port && it.address == ip("0.0.0.0"));
        assert!(has || is_full, "{port}: {found:?}");
    }
}
