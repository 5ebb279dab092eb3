use super::*;

/// A root with these files; a text of `-> PATH` makes a link.
fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let at = root.path().join(path);
        fs::create_dir_all(at.parent().unwrap()).unwrap();
        match text.strip_prefix("-> ") {
            Some(target) => std::os::unix::fs::symlink(target, at).unwrap(),
            None => fs::write(at, text).unwrap(),
        }
    }
    root
}

/// `UNIT[ of USER][ enabled][ masked]: LISTEN -> TARGET`, of every forward.
fn shown(files: &[(&str, &str)]) -> Vec<String> {
    let root = root(files);
    let mut lines = Vec::new();
    for manager in managers(root.path()) {
        for name in manager.units(&[]) {
            for found in manager.forwards(&name, root.path(), &[]) {
                let user = found.origin.user.map(|user| format!(" of {user}")).unwrap_or_default();
                let enabled = if found.origin.enabled { " enabled" } else { "" };
                let masked = if found.origin.masked { " masked" } else { "" };
                let forward = match found.forward {
                    Ok(forward) => format!("{} -> {}", forward.listen, forward.target),
                    Err(why) => why,
                };
                lines.push(format!("{}{user}{enabled}{masked}: {forward}", name.0));
            }
        }
    }
    lines
}

const PLAIN: &str =
    "[Service]\nExecStart=/usr/bin/socat TCP-LISTEN:6379,bind=172.17.0.1,fork TCP:127.0.0.1:6379\n";

#[test]
fn units_are_found_enabled_or_not_masked_or_not() {
    let lines = shown(&[
        ("etc/systemd/system/a.service", PLAIN),
        ("etc/systemd/system/multi-user.target.wants/a.service", "-> /etc/systemd/system/a.service"),
        ("usr/lib/systemd/system/b.service", PLAIN),
        ("lib/systemd/system/c.service", PLAIN),
        ("etc/systemd/system/c.service", "-> /dev/null"),
        ("etc/systemd/system/other.service", "[Service]\nExecStart=/bin/true\n"),
    ]);
    let forward = "172.17.0.1:6379 -> 127.0.0.1:6379";
    let expected = [
        format!("a.service enabled: {forward}"),
        format!("b.service: {forward}"),
        format!("c.service masked: {forward}"),
    ];
    assert_eq!(lines, expected);
}

#[test]
fn drop_ins_environments_and_instances_count() {
    let template = "[Service]\nEnvironment=GATEWAY=172.17.0.1\nEnvironmentFile=-/etc/default/none\n\
                    EnvironmentFile=/etc/default/%p\nExecStart=socat TCP4-LISTEN:%i,bind=${GATEWAY},fork ${TO}:%i\n";
    let lines = shown(&[
        ("etc/systemd/system/forward@.service", template),
        ("etc/default/forward", "TO=TCP4:127.0.0.1\n"),
        ("etc/systemd/system/multi-user.target.wants/forward@5432.service", "-> ../forward@.service"),
        ("etc/systemd/system/forward@6379.service.d/x.conf", "[Service]\nEnvironment=GATEWAY=172.18.0.1\n"),
        ("etc/systemd/system/multi-user.target.wants/forward@6379.service", "-> ../forward@.service"),
        ("etc/systemd/system/plain.service", PLAIN),
        (
            "etc/systemd/system/plain.service.d/override.conf",
            "[Service]\nExecStart=\nExecStart=socat TCP-L:1,fork TCP:127.0.0.1:1\n",
        ),
        (
            "etc/systemd/system/lost.service",
            "[Service]\nEnvironmentFile=/etc/lost\nExecStart=socat ${A} ${B}\n",
        ),
    ]);
    assert_eq!(lines[0], "forward@5432.service enabled: 172.17.0.1:5432 -> 127.0.0.1:5432");
    assert_eq!(lines[1], "forward@6379.service enabled: 172.18.0.1:6379 -> 127.0.0.1:6379");
    assert!(lines[2].contains("/etc/lost cannot be read"), "{lines:?}");
    assert_eq!(lines[3], "plain.service: 0.0.0.0:1 -> 127.0.0.1:1");
}

#[test]
fn scripts_sockets_and_users_are_read() {
    let script = "[Service]\nExecStart=/bin/sh -c 'socat TCP-LISTEN:1,bind=172.17.0.1,fork TCP:127.0.0.1:1 & \
                  exec socat TCP-LISTEN:2,bind=172.17.0.1,fork TCP:127.0.0.1:2'\n";
    let proxy = "[Service]\nExecStart=/usr/lib/systemd/systemd-socket-proxyd 127.0.0.1:5432\n";
    let lines = shown(&[
        ("etc/systemd/system/both.service", script),
        ("etc/systemd/system/proxy.service", proxy),
        ("etc/systemd/system/proxy.socket", "[Socket]\nListenStream=172.17.0.1:5432\n"),
        ("etc/systemd/system/sockets.target.wants/proxy.socket", "-> ../proxy.socket"),
        ("etc/systemd/system/named.service", proxy),
        ("etc/systemd/system/elsewhere.socket", "[Socket]\nListenStream=80\nService=named.service\n"),
        ("etc/systemd/system/alone.service", proxy),
        ("etc/passwd", "root:x:0:0::/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\nodd\n"),
        ("home/ann/.config/systemd/user/mine.service", PLAIN),
    ]);
    let expected = [
        "alone.service: its socket unit alone.socket is missing",
        "both.service: 172.17.0.1:1 -> 127.0.0.1:1",
        "both.service: 172.17.0.1:2 -> 127.0.0.1:2",
        "named.service: [::]:80 -> 127.0.0.1:5432",
        "proxy.service enabled: 172.17.0.1:5432 -> 127.0.0.1:5432",
        "mine.service of ann: 172.17.0.1:6379 -> 127.0.0.1:6379",
    ];
    assert_eq!(lines, expected);
}
