use super::*;

fn parsed(line: &str) -> Result<Forward, String> {
    let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
    parse(&words)
}

/// `LISTEN -> TARGET`, and what else is in it.
fn shown(line: &str) -> String {
    match parsed(line) {
        Err(why) => format!("left alone: {why}"),
        Ok(forward) => {
            let mut text = format!("{} -> {}", forward.listen, forward.target);
            forward.allow.iter().for_each(|net| text.push_str(&format!(" from {net}")));
            forward.max_connections.iter().for_each(|most| text.push_str(&format!(" max {most}")));
            forward.idle_timeout.iter().for_each(|idle| text.push_str(&format!(" idle {idle}")));
            if forward.listen.both_families {
                text.push_str(" both");
            }
            text
        }
    }
}

#[test]
fn what_people_have_in_their_units_is_understood() {
    for (line, expected) in [
        ("TCP-LISTEN:11434,bind=172.17.0.1,fork TCP:127.0.0.1:11434", "172.17.0.1:11434 -> 127.0.0.1:11434"),
        ("TCP-LISTEN:11434,fork,reuseaddr TCP:localhost:11434", "0.0.0.0:11434 -> 127.0.0.1:11434"),
        ("tcp-l:6379,fork,reuseaddr,bind=172.18.0.1 tcp:127.0.0.1:6379", "172.18.0.1:6379 -> 127.0.0.1:6379"),
        ("tcp4-listen:5432,reuseaddr,fork tcp4:127.0.0.1:5432", "0.0.0.0:5432 -> 127.0.0.1:5432"),
        (
            "-d -d TCP4-LISTEN:5433,bind=172.17.0.1,reuseaddr,fork,keepalive,keepidle=60,keepintvl=10,keepcnt=3 \
             TCP4:127.0.0.1:5432,connect-timeout=10,nodelay",
            "172.17.0.1:5433 -> 127.0.0.1:5432",
        ),
        (
            "-T 300 TCP-LISTEN:80,bind=172.17.0.1,fork,max-children=20 TCP:127.0.0.1:8080",
            "172.17.0.1:80 -> 127.0.0.1:8080 max 20 idle 300",
        ),
        ("-T0.5 -b65536 -ly -lpforward TCP-L:1,fork TCP:127.1.2.3:2", "0.0.0.0:1 -> 127.1.2.3:2 idle 1"),
        (
            "TCP-LISTEN:5432,fork,range=172.16.0.0/12,su=nobody TCP:127.0.0.1:5432",
            "0.0.0.0:5432 -> 127.0.0.1:5432 from 172.16.0.0/12",
        ),
        (
            "TCP-LISTEN:1,fork,range=10.1.0.0:255.255.0.0 TCP:127.0.0.1:1",
            "0.0.0.0:1 -> 127.0.0.1:1 from 10.1.0.0/16",
        ),
        ("TCP6-LISTEN:80,fork,ipv6only=0 TCP:127.0.0.1:80", "[::]:80 -> 127.0.0.1:80 both"),
        ("TCP6-LISTEN:80,fork,ipv6only=1 TCP6:[::1]:80", "[::]:80 -> [::1]:80"),
        (
            "TCP6-LISTEN:80,fork,bind=[fd00::1],range=[fd00::]/8 TCP6:[::1]:80",
            "[fd00::1]:80 -> [::1]:80 from fd00::/8",
        ),
        ("TCP-LISTEN:80,pf=ip6,fork TCP6:localhost:80", "[::]:80 -> [::1]:80"),
        (
            "TCP-LISTEN:5432,fork,bind=172.17.0.1 UNIX-CONNECT:/run/postgresql/.s.PGSQL.5432",
            "172.17.0.1:5432 -> unix:/run/postgresql/.s.PGSQL.5432",
        ),
        (
            "TCP-LISTEN:3306,fork unix-client:/run/mysqld/mysqld.sock",
            "0.0.0.0:3306 -> unix:/run/mysqld/mysqld.sock",
        ),
        ("TCP-LISTEN:1,fork TCP:0.0.0.0:1", "0.0.0.0:1 -> 127.0.0.1:1"),
    ] {
        assert_eq!(shown(line), expected, "{line}");
    }
}

#[test]
fn what_is_something_else_is_left_alone_with_the_reason() {
    for (line, why) in [
        ("OPENSSL-LISTEN:443,fork,cert=/c TCP:127.0.0.1:80", "speaks TLS"),
        ("TCP-LISTEN:443,fork OPENSSL:127.0.0.1:443", "speaks TLS"),
        ("TCP-LISTEN:1,fork EXEC:/bin/cat", "runs a program"),
        ("TCP-LISTEN:1,fork SYSTEM:date", "runs a program"),
        ("TCP-LISTEN:1,fork PROXY:p:h:1", "through a proxy"),
        ("TCP-LISTEN:1,fork SOCKS4A:p:h:1", "through a proxy"),
        ("TCP-LISTEN:1,fork TCP:192.168.1.7:80", "its target is 192.168.1.7"),
        ("TCP-LISTEN:1,fork TCP:db.internal:80", "its target is db.internal"),
        ("UDP4-LISTEN:53,fork UDP4:127.0.0.1:53", "forwards UDP"),
        ("VSOCK-LISTEN:1,fork TCP:127.0.0.1:22", "vsock-listen is no TCP or UNIX socket"),
        ("UNIX-LISTEN:/tmp/s,fork TCP:127.0.0.1:22", "listens on a UNIX socket"),
        ("TCP-LISTEN:1,fork ABSTRACT-CONNECT:x", "abstract"),
        ("TCP:127.0.0.1:1 TCP-LISTEN:2", "does not wait"),
        ("TCP-LISTEN:1,fork TCP-LISTEN:2", "both sides"),
        ("-u TCP-LISTEN:1,fork TCP:127.0.0.1:1", "one direction"),
        ("-v TCP-LISTEN:1,fork TCP:127.0.0.1:1", "prints"),
        ("TCP-LISTEN:1,fork,crlf TCP:127.0.0.1:1", "line ends"),
        ("TCP-LISTEN:1,fork,tcpwrap=x TCP:127.0.0.1:1", "tcp_wrappers"),
        ("TCP-LISTEN:1,fork,frok TCP:127.0.0.1:1", "option frok"),
        ("TCP-LISTEN:1,fork,bind TCP:127.0.0.1:1", "socat refuses"),
        ("TCP-LISTEN:1,fork,range=here TCP:127.0.0.1:1", "expected a subnet"),
        ("TCP-LISTEN:http,fork TCP:127.0.0.1:1", "its port is http"),
        ("TCP-LISTEN:0,fork TCP:127.0.0.1:1", "its port is 0"),
        ("TCP6-LISTEN:1,bind=[::1 TCP:127.0.0.1:1", "not closed"),
        ("TCP-LISTEN:1,so-bindtodevice=docker0 TCP:127.0.0.1:1", "bound to an interface"),
        ("TCP-LISTEN:1 STDIO!!TCP:127.0.0.1:1", "two addresses"),
        ("TCP-LISTEN:1,fork", "1 addresses"),
        ("-T", "has no value"),
    ] {
        let found = shown(line);
        assert!(found.starts_with("left alone: ") && found.contains(why), "{line}: {found}");
    }
}

#[test]
fn without_fork_it_ends_after_one_connection() {
    let forward = parsed("TCP-LISTEN:1 TCP:127.0.0.1:1").unwrap();
    assert!(forward.notes[0].contains("one connection"));
}

proptest::proptest! {
    #[test]
    fn no_text_panics(words in proptest::collection::vec("[ -~]{0,40}", 0..6)) {
        let _ = parse(&words);
    }
}
