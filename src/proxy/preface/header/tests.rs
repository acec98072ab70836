//! Headers against the document, against the `ppp` crate as the second opinion, and against garbage.

use proptest::prelude::*;

use super::*;

const V1: ProxyVersion = ProxyVersion::V1;
const V2: ProxyVersion = ProxyVersion::V2;

/// A header of version 2 from its command, family and block.
fn binary_of(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
    let length = u16::try_from(block.len()).unwrap().to_be_bytes();
    [&SIGNATURE[..], &[command, family], &length, block].concat()
}

/// TCP over IPv4 from 192.0.2.1:4711 to 198.51.100.2:443, with these extensions.
fn tcp4(extensions: &[u8]) -> Vec<u8> {
    let addresses = [192, 0, 2, 1, 198, 51, 100, 2, 0x12, 0x67, 0x01, 0xbb];
    binary_of(0x21, 0x11, &[&addresses, extensions].concat())
}

fn known() -> Origin {
    Origin::Ip("192.0.2.1:4711".parse().unwrap(), "198.51.100.2:443".parse().unwrap())
}

/// The same with a checksum between two other extensions.
fn checked() -> Vec<u8> {
    let mut header = tcp4(b"\x05\0\x02id\x03\0\x04\0\0\0\0\x04\0\0");
    let crc = crc32c(&[&header]).to_be_bytes();
    let at = header.len() - 7;
    header[at..at + 4].copy_from_slice(&crc);
    header
}

#[test]
fn the_lines_of_the_document_are_written_and_read() {
    let six = Origin::Ip("[2001:db8::1]:65535".parse().unwrap(), "[::1]:1".parse().unwrap());
    for (origin, line) in [
        (known(), "PROXY TCP4 192.0.2.1 198.51.100.2 4711 443\r\n"),
        (six, "PROXY TCP6 2001:db8::1 ::1 65535 1\r\n"),
        (Origin::Unknown, "PROXY UNKNOWN\r\n"),
    ] {
        assert_eq!(Header::new(V1, origin).as_bytes(), line.as_bytes());
        assert_eq!(decode(line.as_bytes()), Decoded::Whole(line.len(), origin));
    }
    let worst = format!("PROXY UNKNOWN {0} {0} 65535 65535\r\n", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff");
    assert_eq!(decode(worst.as_bytes()), Decoded::Whole(LONGEST_LINE, Origin::Unknown), "the longest there is");
}

#[test]
fn binary_headers_are_read() {
    let mut unix = vec![0; 216];
    unix[..4].copy_from_slice(b"/tmp");
    for (header, origin) in [
        (tcp4(b""), known()),
        (tcp4(b"\x04\0\x03pad\x20\0\0"), known()),
        (checked(), known()),
        (binary_of(0x21, 0x31, &unix), Origin::Unix),
        (binary_of(0x21, 0x00, b""), Origin::Unknown),
        (binary_of(0x21, 0x00, b"\x03 whatever"), Origin::Unknown),
        (binary_of(0x21, 0x12, &[1; 12]), Origin::Unknown),
        (binary_of(0x20, 0x00, b""), Origin::Sender),
        (binary_of(0x20, 0x11, b"ignored"), Origin::Sender),
    ] {
        let more = [&header[..], b"GET /"].concat();
        assert_eq!(decode(&more), Decoded::Whole(header.len(), origin), "{}", header.escape_ascii());
    }
    assert_eq!(Header::new(V2, known()).as_bytes(), tcp4(b""));
    for origin in [Origin::Sender, Origin::Unknown, Origin::Unix] {
        assert_eq!(Header::new(V2, origin).as_bytes(), binary_of(0x20, 0, b""));
    }
}

#[test]
fn what_is_no_header_is_refused() {
    let mut wrong_sum = checked();
    wrong_sum[20] ^= 1;
    let long = format!("PROXY UNKNOWN {}", "x".repeat(LONGEST_LINE));
    let mut endless = binary_of(0x21, 0x11, b"");
    endless[14..16].copy_from_slice(&[0xff, 0xff]);
    for bytes in [
        &b"GET / HTTP/1.1\r\n"[..],
        b"\x16\x03\x01",
        b"PROXX",
        b"proxy TCP4 ",
        b"PROXY TCP4 192.0.2.1 198.51.100.2 4711 443\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.2 4711\r\n",
        b"PROXY TCP4  192.0.2.1 198.51.100.2 4711 443\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.2 4711 443 \r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.2 +711 443\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.2  443\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.2 65536 443\r\n",
        b"PROXY TCP4 192.0.2.256 198.51.100.2 4711 443\r\n",
        b"PROXY TCP4 ::1 ::1 4711 443\r\n",
        b"PROXY TCP6 192.0.2.1 198.51.100.2 4711 443\r\n",
        b"PROXY UDP4 192.0.2.1 198.51.100.2 4711 443\r\n",
        b"PROXY UNKNOWNS\r\n",
        b"PROXY \r\n",
        b"PROXY \n",
        long.as_bytes(),
        &binary_of(0x11, 0x11, &[0; 12]),
        &binary_of(0x22, 0x11, &[0; 12]),
        &binary_of(0x21, 0x41, &[0; 12]),
        &binary_of(0x21, 0x13, &[0; 12]),
        &binary_of(0x21, 0x11, &[0; 11]),
        &binary_of(0x21, 0x21, &[0; 35]),
        &binary_of(0x21, 0x31, &[0; 215]),
        &tcp4(b"\x04\0"),
        &tcp4(b"\x04\0\x02x"),
        &tcp4(b"\x03\0\x03xxx"),
        &tcp4(b"\x03\0\x04\0\0\0\0"),
        &wrong_sum,
        &endless,
    ] {
        assert!(matches!(decode(bytes), Decoded::Malformed(_)), "{}", bytes.escape_ascii());
    }
}

#[test]
fn the_checksum_is_that_of_the_rfc() {
    assert_eq!(crc32c(&[b"1234", b"", b"56789"]), 0xe306_9283);
}

fn origins() -> impl Strategy<Value = Origin> {
    let ip = any::<IpAddr>().prop_map(|ip| ip.to_canonical());
    let socket = (ip, any::<u16>()).prop_map(SocketAddr::from);
    (socket.clone(), socket).prop_map(|(from, to)| Origin::Ip(from, to))
}

fn versions() -> impl Strategy<Value = ProxyVersion> {
    prop_oneof![Just(V1), Just(V2)]
}

proptest! {
    #[test]
    fn what_is_written_is_read_and_its_every_beginning_waits(version in versions(), origin in origins(), rest: Vec<u8>) {
        let header = Header::new(version, origin);
        let (length, bytes) = (header.as_bytes().len(), [header.as_bytes(), &rest].concat());
        prop_assert_eq!(decode(&bytes), Decoded::Whole(length, origin));
        for split in 0..length {
            prop_assert_eq!(decode(&bytes[..split]), Decoded::Partial, "the first {} bytes", split);
        }
    }

    /// The `ppp` crate as the second opinion.
    #[test]
    fn another_reader_understands_what_is_written(version in versions(), origin in origins()) {
        let header = Header::new(version, origin);
        let Origin::Ip(from, to) = origin else { unreachable!() };
        let mapped = |ip: IpAddr| if from.is_ipv4() == to.is_ipv4() { ip } else { in_ipv6(ip).into() };
        let (from, to) = ((mapped(from.ip()), from.port()), (mapped(to.ip()), to.port()));
        let read = match ppp::HeaderResult::parse(header.as_bytes()) {
            ppp::HeaderResult::V1(Ok(line)) => match line.addresses {
                ppp::v1::Addresses::Tcp4(a) => {
                    ((a.source_address.into(), a.source_port), (a.destination_address.into(), a.destination_port))
                }
                ppp::v1::Addresses::Tcp6(a) => {
                    ((a.source_address.into(), a.source_port), (a.destination_address.into(), a.destination_port))
                }
                ppp::v1::Addresses::Unknown => panic!("unknown"),
            },
            ppp::HeaderResult::V2(Ok(binary)) => match binary.addresses {
                ppp::v2::Addresses::IPv4(a) => {
                    ((a.source_address.into(), a.source_port), (a.destination_address.into(), a.destination_port))
                }
                ppp::v2::Addresses::IPv6(a) => {
                    ((a.source_address.into(), a.source_port), (a.destination_address.into(), a.destination_port))
                }
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        };
        prop_assert_eq!(read, (from, to));
    }

    /// Garbage, also such as begins well; and what was said of it does not change with what follows.
    #[test]
    fn nothing_that_comes_is_too_much(start in 0usize..4, garbage in prop::collection::vec(any::<u8>(), 0..300)) {
        let starts = [&b""[..], b"PROXY ", SIGNATURE, b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x20"];
        let bytes = [starts[start], &garbage].concat();
        let whole = decode(&bytes);
        for split in 0..bytes.len() {
            match decode(&bytes[..split]) {
                Decoded::Partial => {}
                Decoded::Malformed(_) => prop_assert!(matches!(whole, Decoded::Malformed(_))),
                told => prop_assert_eq!(told, whole),
            }
        }
    }
}
