//! Tests on answers as Docker 20.10 and 28 give them, and on sockets without an engine behind them.

use super::{
    super::networks::{BridgeNetwork, Listed, listed, matching, pick_network},
    *,
};

const ID: &str = "4f1c2a3b5d6e7f8091a2b3c4d5e6f708192a3b4c5d6e7f8091a2b3c4d5e6f708";

fn networks(json: &str) -> Vec<Listed> {
    let all: Vec<Network> = serde_json::from_str(json).expect("a list of networks");
    all.into_iter().map(listed).collect()
}

fn some_networks() -> Vec<Listed> {
    networks(&format!(
        r#"[
        {{"Name":"bridge","Id":"aa11","Driver":"bridge","Scope":"local","IPAM":{{"Driver":"default","Options":null,
          "Config":[{{"Subnet":"172.17.0.0/16","Gateway":"172.17.0.1"}}]}},"Options":{{
          "com.docker.network.bridge.default_bridge":"true","com.docker.network.bridge.name":"docker0"}}}},
        {{"Name":"app_default","Id":"{ID}","Driver":"bridge","IPAM":{{"Config":[
          {{"Subnet":"172.18.0.0/16","Gateway":"172.18.0.1/16"}},{{"Subnet":"fd00:18::/64","Gateway":"fd00:18::1"}}]}},
          "Options":{{}}}},
        {{"Name":"nogw","Id":"bb22","Driver":"bridge","IPAM":{{"Config":[{{"Subnet":"10.5.0.0/24"}}]}},"Options":null}},
        {{"Name":"host","Id":"cc33","Driver":"host","IPAM":{{"Config":[]}}}},
        {{"Name":"lan","Id":"cc44","Driver":"macvlan","IPAM":{{"Config":null}}}},
        {{"Name":"twin","Id":"dd55","Driver":"bridge"}},{{"Name":"twin","Id":"dd66","Driver":"bridge"}}]"#
    ))
}

#[test]
fn the_default_network_is_docker0() {
    let network = pick_network(some_networks(), "bridge").expect("bridge");
    assert_eq!(network.bridge, "docker0");
    let unnamed = networks(r#"[{"Name":"bridge","Id":"aa11","Driver":"bridge"}]"#);
    assert_eq!(pick_network(unnamed, "bridge").expect("bridge").bridge, "docker0");
}

#[test]
fn a_user_network_is_named_after_its_id() {
    for name in ["app_default", ID, "4f1c"] {
        let network = pick_network(some_networks(), name).expect(name);
        assert_eq!((network.name.as_str(), network.bridge.as_str()), ("app_default", "br-4f1c2a3b5d6e"));
    }
}

#[test]
fn networks_that_cannot_be_used_are_refused() {
    let refusal = |name: &str| pick_network(some_networks(), name).expect_err(name).to_string();
    let unknown = refusal("app");
    assert!(unknown.contains("choose a network (app_default, bridge, nogw, twin, twin)"), "{unknown}");
    assert!(refusal("").contains("no network has that name"));
    assert!(refusal("../containers").contains("no network has that name"));
    assert!(refusal("twin").contains("fits 2 networks: name one by id (dd55, dd66)"));
    assert!(refusal("cc").contains("fits 2 networks"));
    assert!(refusal("host").contains("its driver is host, expected bridge"));
    assert!(refusal("cc44").contains("its driver is macvlan"));
}

#[test]
fn a_networks_gateways_are_those_of_ipam() {
    let of = |name: &str| pick_network(some_networks(), name).expect(name);
    let expected = ["172.18.0.1", "fd00:18::1"].map(|ip| ip.parse::<IpAddr>().expect("ip"));
    assert_eq!(of("app_default").gateways, expected, "whatever prefix length stands behind");
    assert_eq!((of("nogw").gateways.len(), of("nogw").subnets.len()), (0, 1));
}

/// What IPAM holds is no reason to refuse.
#[test]
fn odd_subnets_do_not_matter() {
    let odd = networks(r#"[{"Name":"n","Id":"1","Driver":"bridge","IPAM":{"Config":[{"Subnet":"x/y"}]}}]"#);
    assert_eq!(pick_network(odd, "n").expect("n").bridge, "br-1");
}

#[test]
fn patterns_stand_for_bridge_networks_by_name() {
    let names = |pattern: &str| -> Vec<String> {
        matching(some_networks(), pattern).expect(pattern).into_iter().map(|one| one.name).collect()
    };
    assert_eq!(names("all"), ["app_default", "bridge", "nogw", "twin", "twin"]);
    assert_eq!(names("*_default"), ["app_default"]);
    assert_eq!(names("[bn]*"), ["bridge", "nogw"]);
    let refusal = |pattern: &str| matching(some_networks(), pattern).expect_err(pattern).to_string();
    let none = refusal("web-*");
    assert!(none.contains("no network matches `web-*`") && none.contains("app_default, bridge"), "{none}");
    assert!(refusal("host*").contains("no network matches"), "of another driver");
    assert!(refusal("[").contains("failed to understand --network `[`"));
}

#[test]
fn a_network_whose_owner_wants_no_gateway_says_so() {
    let of = |options: &str| {
        let network = format!(r#"[{{"Name":"n","Id":"1","Driver":"bridge","Options":{{{options}}}}}]"#);
        pick_network(networks(&network), "n").expect("n").without_gateway
    };
    let option = "com.docker.network.bridge.gateway_mode_ipv4";
    assert_eq!(of(&format!(r#""{option}":"isolated""#)), Some(format!("{option}=isolated")));
    assert_eq!(of(&format!(r#""{option}":"routed""#)), None);
}

#[test]
fn the_swarms_network_is_told_from_a_typing_error() {
    let error = pick_network(some_networks(), "docker_gwbridge").expect_err("no swarm").to_string();
    assert!(error.contains("joins a swarm"), "{error}");
}

fn containers() -> Vec<ContainerSummary> {
    serde_json::from_str(&format!(
        r#"[
        {{"Id":"c0ffee01","Names":["/db/web","/web"],"State":"running","HostConfig":{{"NetworkMode":"app_default"}},
          "Ports":[{{"IP":"0.0.0.0","PrivatePort":80,"PublicPort":6379,"Type":"tcp"}},
                   {{"IP":"::","PrivatePort":80,"PublicPort":6379,"Type":"tcp"}},
                   {{"IP":"0.0.0.0","PrivatePort":53,"PublicPort":5353,"Type":"udp"}},
                   {{"PrivatePort":443,"Type":"tcp"}}],
          "NetworkSettings":{{"Networks":{{"app_default":{{"NetworkID":"{ID}","IPAddress":"172.18.0.7",
            "GlobalIPv6Address":"fd00:18::7"}},"other":{{"NetworkID":"ee77","IPAddress":"172.19.0.2"}}}}}}}},
        {{"Id":"c0ffee02","Names":["/old"],"State":"exited","HostConfig":{{"NetworkMode":"app_default"}},"Ports":[],
          "NetworkSettings":{{"Networks":{{
            "app_default":{{"NetworkID":"{ID}","IPAddress":"","GlobalIPv6Address":""}}}}}}}},
        {{"Id":"decaf003","Names":["/side"],"State":"running","HostConfig":{{"NetworkMode":"container:c0ffee01"}},
          "Ports":[],"NetworkSettings":{{"Networks":{{}}}}}}]"#
    ))
    .expect("a list of containers")
}

#[test]
fn published_ports_are_tcp_and_say_on_which_address() {
    let published = published_in(&containers(), 6379);
    let found: Vec<String> =
        published.iter().map(|one| format!("{} {}", one.container, one.host_ip)).collect();
    assert_eq!(found, ["web 0.0.0.0", "web ::"]);
    assert!(published_in(&containers(), 5353).is_empty(), "UDP");
    assert!(published_in(&containers(), 443).is_empty(), "exposed, not published");
    assert!(published[0].covers(IpAddr::from([172, 17, 0, 1])));
    assert!(!published[1].covers(IpAddr::from([172, 17, 0, 1])));
}

#[test]
fn a_containers_addresses_are_those_on_the_network() {
    let network = pick_network(some_networks(), "app_default").expect("app_default");
    for name in ["web", "/web", "c0ffee01"] {
        let addresses = addresses_in(&containers(), name, (&network.id, &network.name)).expect(name);
        assert_eq!(addresses, ["172.18.0.7", "fd00:18::7"].map(|ip| ip.parse::<IpAddr>().expect("ip")));
    }
}

#[test]
fn containers_without_an_address_there_are_refused() {
    let network = pick_network(some_networks(), "app_default").expect("app_default");
    let nogw = pick_network(some_networks(), "nogw").expect("nogw");
    let refusal = |name: &str, network: &BridgeNetwork| {
        let network = (network.id.as_str(), network.name.as_str());
        addresses_in(&containers(), name, network).expect_err(name).to_string()
    };
    assert!(
        refusal("wbe", &network).contains("none has that name or id: choose a running container (side, web)")
    );
    assert!(refusal("", &network).contains("none has that name"));
    assert!(refusal("c0ffee", &network).contains("more than one (2)"));
    assert!(refusal("web", &nogw).contains("it is on app_default, other: use `--network app_default`"));
    assert!(refusal("side", &network).contains("shares the network of container c0ffee01"));
    assert!(refusal("old", &network).contains("start it (docker start old)"));
}

#[test]
fn hosts_that_cannot_be_reached_are_refused_at_once() {
    let error = Docker::connect_to("unix:///nonexistent/docker.sock").expect_err("no socket").to_string();
    assert!(
        error.starts_with(
            "failed to reach Docker at unix:///nonexistent/docker.sock: the socket does not exist"
        )
    );
    let error = Docker::connect_to("ssh://somewhere").expect_err("ssh").to_string();
    assert!(error.contains("set DOCKER_HOST to unix:///PATH"), "{error}");
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

#[test]
fn a_dead_or_silent_socket_is_reported_within_the_deadline() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("docker.sock");
    let host = format!("unix://{}", path.display());
    let silent = std::os::unix::net::UnixListener::bind(&path).expect("bind");
    let docker = Docker::connect_to(&host).expect("a client");
    let start = std::time::Instant::now();
    let error = runtime().block_on(docker.network("bridge")).expect_err("silent").to_string();
    assert!(error.contains("no answer in time"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(4));
    drop(silent);
    let error = runtime().block_on(docker.network("bridge")).expect_err("dead").to_string();
    assert!(error.contains("Connection refused") && error.contains("start Docker"), "{error}");
}
