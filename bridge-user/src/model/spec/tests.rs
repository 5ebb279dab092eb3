//! Tests of the SPEC grammar: what is accepted, what each refusal says, and the round trip.

use proptest::prelude::*;

use super::*;

fn spec(text: &str) -> ServiceSpec {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn refusal(text: &str) -> String {
    match text.parse::<ServiceSpec>() {
        Ok(parsed) => panic!("{text} was accepted as {parsed}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn accepts_every_form_of_the_grammar() {
    for (text, full) in [
        ("redis", "redis=6379:127.0.0.1:6379"),
        ("8080", "tcp=8080:127.0.0.1:8080"),
        ("web=8080", "web=8080:127.0.0.1:8080"),
        ("8080:80", "tcp=8080:127.0.0.1:80"),
        ("my.web_1-a=8080:80", "my.web_1-a=8080:127.0.0.1:80"),
        ("53=53", "53=53:127.0.0.1:53"),
        ("8080:127.8.9.1:80", "tcp=8080:127.8.9.1:80"),
        ("8080:[::1]:80", "tcp=8080:[::1]:80"),
        ("web=8080:::1:80", "web=8080:[::1]:80"),
        ("pg=5432:unix:/run/postgresql/.s.PGSQL.5432", "pg=5432:unix:/run/postgresql/.s.PGSQL.5432"),
        ("5432:unix:/tmp/a=b:c d", "tcp=5432:unix:/tmp/a=b:c d"),
        ("65535:1", "tcp=65535:127.0.0.1:1"),
        ("6379/tcp", "tcp=6379:127.0.0.1:6379"),
        ("web=8080/tcp:80", "web=8080:127.0.0.1:80"),
    ] {
        assert_eq!(spec(text).to_string(), full, "{text}");
    }
}

#[test]
fn target_prints_as_documented() {
    assert_eq!(spec("redis").target.to_string(), "127.0.0.1:6379");
    assert_eq!(spec("1:::1:80").target.to_string(), "[::1]:80");
    assert_eq!(spec("1:unix:/a/b").target, Target::Unix(PathBuf::from("/a/b")));
    assert_eq!(spec("1:unix:/a/b").target.to_string(), "unix:/a/b");
}

#[test]
fn every_refusal_says_what_is_wrong_and_what_to_write() {
    for (text, expected) in [
        ("", "it is empty"),
        ("redsi", "did you mean `redis`?"),
        ("Redis", "did you mean `redis`?"),
        ("kafka", "one of ollama, openclaw"),
        ("mcp", "write mcp=PORT"),
        (
            "Web=80",
            "has upper-case letters, expected 1-32 characters of a-z 0-9 . _ - that start with a letter or digit: \
             write `web=80`",
        ),
        ("-web=80", "starts with punctuation"),
        ("=80", "the name `` is empty"),
        ("wéb=80", "has a character that is not allowed"),
        ("aaaaaaaaaabbbbbbbbbbccccccccccddd=80", "is too long"),
        ("web=", "PORT `` is not a number"),
        ("53/udp", "PORT `53/udp` is UDP, which is not in this version yet"),
        ("+80", "PORT `+80` is not a number"),
        ("-1", "PORT `-1` is not a number"),
        ("80:", "TARGET_PORT `` is not a number, expected a port from 1 to 65535: write `80`"),
        ("0", "PORT is 0, which no client can connect to"),
        ("80:0", "TARGET_PORT is 0"),
        ("65536", "PORT 65536 is too large"),
        ("80:99999999999999999999999", "TARGET_PORT 99999999999999999999999 is too large"),
        ("80:127.0.0.1", "has no port, expected ADDR:TARGET_PORT: write `80:127.0.0.1:80`"),
        ("80:::1", "has no port, expected ADDR:TARGET_PORT: write `80:::1:80`"),
        ("80:[::1]", "write `'80:[::1]:80'`"),
        ("localhost", "write localhost:PORT"),
        ("80:[127.0.0.1]:80", "`[127.0.0.1]` is not an IP address"),
        ("80:unix", "TARGET_PORT `unix` is not a number"),
        ("80:0.0.0.0:80", "means every interface and is no target"),
        ("80:[::]:80", "means every interface and is no target"),
        ("80:192.168.1.5:80", "`192.168.1.5` is not a loopback address"),
        ("80:[::ffff:127.0.0.1]:80", "write the IPv4 address itself"),
        ("80:unix:", "path `` is empty"),
        ("80:unix:run/x", "path `run/x` is not absolute"),
        ("80:unix:/run/", "names a directory"),
        ("80:unix:/a\0b", "has a NUL byte"),
        (" redis", "no preset is called ` redis`"),
    ] {
        let message = refusal(text);
        assert!(message.starts_with(&format!("invalid SPEC `{text}`: ")), "{message}");
        assert!(message.contains(expected), "{text}: {message}");
        assert!(message.contains("expected"), "{text}: {message}");
    }
}

#[test]
fn a_listener_can_be_named_by_its_host_and_port() {
    for (text, full) in [
        ("localhost:6379", "tcp=6379:127.0.0.1:6379"),
        ("127.0.0.1:6379", "tcp=6379:127.0.0.1:6379"),
        ("127.0.0.1:6379/tcp", "tcp=6379:127.0.0.1:6379"),
        ("[::1]:3000", "tcp=3000:[::1]:3000"),
        ("web=localhost:3000", "web=3000:127.0.0.1:3000"),
        ("80:localhost:3000", "tcp=80:127.0.0.1:3000"),
        ("http://localhost:8080", "tcp=8080:127.0.0.1:8080"),
        ("http://127.0.0.1:8080/", "tcp=8080:127.0.0.1:8080"),
        ("http://[::1]:8080", "tcp=8080:[::1]:8080"),
        ("redis://localhost:7000", "redis=7000:127.0.0.1:7000"),
        ("db=5432:/run/postgresql/.s.PGSQL.5432", "db=5432:unix:/run/postgresql/.s.PGSQL.5432"),
    ] {
        assert_eq!(spec(text).to_string(), full, "{text}");
    }
}

#[test]
fn what_was_meant_is_ready_to_paste() {
    for (text, meant) in [
        ("6379,5432", "write `6379 5432`"),
        ("redis, postgres", "write `redis postgres`"),
        (" redis", "write `redis`"),
        ("7000-7003", "write `7000 7001 7002 7003`"),
        ("web=80-81", "write `web=80 web=81`"),
        ("7000-7010", "write a SPEC for each port, `$(seq 7000 7010)`"),
        ("web=7000-7010", "write a SPEC for each port, `$(seq -f web=%.0f 7000 7010)`"),
        ("redis:6379", "write `redis`"),
        ("redis:7000:6379", "write `redis=7000:6379`"),
        (
            "redis:7000",
            "write `redis=7000` where it listens on 7000, or `redis=7000:6379` where it listens on 6379",
        ),
        ("Web:8080", "write `web=8080`"),
        ("web:8080:[::1]:80", "write `'web=8080:[::1]:80'`"),
        ("6379=redis", "write `redis=6379`"),
        ("6379:redis", "write `redis=6379`"),
        ("cache=redis", "write `cache=6379`"),
        ("redis=", "write `redis`"),
        ("::1:80", "write `'[::1]:80'`"),
        (":6379", "write `6379`"),
        ("*:6379", "write `6379`"),
        ("0.0.0.0:6379", "write `6379`"),
        ("tcp:6379", "write `6379`"),
        ("0.0.0.0:8080:80", "write `8080:80`"),
        ("127.0.0.1:8080:80", "write `8080:127.0.0.1:80`"),
        ("[::1]:8080:80", "write `'8080:[::1]:80'`"),
        ("8080:80/tcp", "write `8080:80`"),
        ("8080:localhost", "write `8080:localhost:8080`"),
        ("http://localhost:8080/v1?a=b", "write `localhost:8080`"),
        ("postgresql://me:pw@localhost:5433/db", "write `postgres://localhost:5433`"),
        ("postgresql://me@localhost/db", "write `postgres`"),
        ("http://localhost", "write `80`"),
        ("unix:/run/x.sock", "write `PORT:unix:/run/x.sock` with the port that containers use as PORT"),
        ("db=/run/a b", "write `'db=PORT:unix:/run/a b'` with the port that containers use as PORT"),
    ] {
        let message = refusal(text);
        assert!(message.ends_with(&format!(": {meant}")), "{text}: {message}");
    }
}

#[test]
fn nothing_is_proposed_where_nothing_is_plain() {
    for text in ["kafka", "http://example.com", "192.168.1.5:80", "70000-70010", "9-3", "a,b", "a:b", "\0"] {
        let message = refusal(text);
        assert!(!message.contains(": write"), "{text}: {message}");
    }
}

#[test]
fn unix_path_limit_is_107_bytes() {
    let longest = format!("/{}", "x".repeat(106));
    assert_eq!(spec(&format!("80:unix:{longest}")).target, Target::Unix(PathBuf::from(&longest)));
    assert!(refusal(&format!("80:unix:{longest}x")).contains("too long"));
    assert!(refusal(&format!("80:unix:/{}", "é".repeat(54))).contains("too long"));
}

fn target() -> impl Strategy<Value = Target> {
    prop_oneof![
        (any::<[u8; 3]>(), 1u16..)
            .prop_map(|([a, b, c], port)| Target::Tcp(SocketAddr::from(([127, a, b, c], port)))),
        (1u16..).prop_map(|port| Target::Tcp(SocketAddr::from((Ipv6Addr::LOCALHOST, port)))),
        "/[a-zA-Z0-9=:./ _é-]{0,40}[a-z]".prop_map(|path| Target::Unix(PathBuf::from(path))),
    ]
}

proptest! {
    #[test]
    fn printing_and_parsing_is_a_round_trip(
        service in "[a-z0-9][a-z0-9._-]{0,31}", port in 1u16.., target in target()
    ) {
        let port = Port::new(port).expect("above 0");
        let original = ServiceSpec { service, port, target };
        prop_assert_eq!(original.to_string().parse::<ServiceSpec>(), Ok(original));
    }

    #[test]
    fn arbitrary_input_never_panics_and_only_loopback_is_accepted(text in ".{0,60}") {
        check_any(&text)?;
    }

    #[test]
    fn near_misses_never_panic_and_only_loopback_is_accepted(text in "[a-z=]{0,3}[0-9:.=\\[\\]unix/+-]{0,30}") {
        check_any(&text)?;
    }
}

fn check_any(text: &str) -> Result<(), TestCaseError> {
    match text.parse::<ServiceSpec>() {
        Ok(parsed) => {
            if let Target::Tcp(address) = parsed.target {
                prop_assert!(address.ip().is_loopback());
            }
            prop_assert_eq!(parsed.to_string().parse::<ServiceSpec>(), Ok(parsed));
        }
        Err(error) => prop_assert!(error.to_string().contains(text)),
    }
    Ok(())
}
