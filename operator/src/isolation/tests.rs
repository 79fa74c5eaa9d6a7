#![allow(clippy::unwrap_used)]

use policy::report::UpstreamReport;
use serde_json::json;
use tokio::net::TcpListener;

use super::*;

const POD: &str = "u0";

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// What a sidecar says of who listens.
fn report(listeners: &[&str]) -> Report {
    let listener = |text: &&str| ListenerReport {
        address: at(text).ip(),
        port: at(text).port(),
    };
    Report {
        listeners: Some(listeners.iter().map(listener).collect()),
        upstream: UpstreamReport {
            state: UpstreamState::Serving,
            message: String::new(),
        },
        ..Report::default()
    }
}

const OWN: Ports<'static> = Ports {
    own: Some(8080),
    open: &[9090],
};

/// A pod at 10.0.0.5, on both families.
fn known(listeners: &[&str]) -> Known {
    let addresses = [ip("10.0.0.5"), ip("fd00::5")];
    Known::of(OWN, &addresses, &report(listeners), true)
}

fn listed(known: &Known) -> Vec<String> {
    let listed = known.targets.iter().filter(|(_, listed)| **listed);
    listed.map(|(address, _)| address.to_string()).collect()
}

#[test]
fn only_addresses_of_the_pod_are_tried() {
    for (listeners, expected) in [
        (&["0.0.0.0:3000"][..], &["10.0.0.5:3000"][..]),
        (&["[::]:3000"], &["10.0.0.5:3000", "[fd00::5]:3000"]),
        (&["10.0.0.5:3000"], &["10.0.0.5:3000"]),
        (&["[::ffff:10.0.0.5]:3000"], &["10.0.0.5:3000"]),
        (&["[fd00::5]:3000"], &["[fd00::5]:3000"]),
        (
            &["127.0.0.1:3000", "[::1]:3000", "[::ffff:127.0.0.1]:3000"],
            &[],
        ),
        (&["0.0.0.0:9090"], &[]),
        (
            &["0.0.0.0:8080", "0.0.0.0:3000"],
            &["10.0.0.5:3000", "10.0.0.5:8080"],
        ),
    ] {
        let known = known(listeners);
        assert_eq!(listed(&known), expected, "{listeners:?}");
        assert_eq!(known.unclear, None, "{listeners:?}");
        // Whatever the sidecar says.
        for own in ["10.0.0.5:8080", "[fd00::5]:8080"] {
            assert!(known.targets.contains_key(&at(own)), "{listeners:?}");
        }
    }
    // Of another network, or made up: nobody is connected to for it.
    for foreign in ["192.168.5.2:8080", "[fe80::1]:8080", "169.254.169.254:80"] {
        let known = known(&[foreign]);
        assert_eq!(listed(&known), [""; 0]);
        let why = known.unclear.unwrap();
        assert!(why.contains(foreign), "{why}");
    }
}

#[test]
fn a_list_that_is_not_whole_is_unclear() {
    let many: Vec<_> = (1..=1000).map(|port| format!("0.0.0.0:{port}")).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    let full = known(&many);
    assert!(full.unclear.unwrap().contains("64 ports or more"));
    assert!(full.targets.len() <= MAX_LISTENERS + 2);
    let mut older = report(&[]);
    older.listeners = None;
    let known = Known::of(OWN, &[ip("10.0.0.5")], &older, true);
    assert!(known.unclear.unwrap().contains("earlier release"));
    let own = BTreeMap::from([(at("10.0.0.5:8080"), false)]);
    assert_eq!(known.targets, own);
}

#[test]
fn the_spec_says_which_ports_are_whose() {
    let spec = |spec: serde_json::Value| serde_json::from_value::<McpServerSpec>(spec).unwrap();
    for (spec, own, open) in [
        (
            json!({"transport": {"type": "StreamableHttp"}, "deployment": {"image": "a"}}),
            Some(8080),
            &[][..],
        ),
        (
            json!({"transport": {"type": "StreamableHttp", "http": {"port": 3000}}, "injected": {"ports": [9090]}}),
            Some(3000),
            &[9090],
        ),
        (
            json!({"transport": {"type": "Stdio"}, "injected": {}}),
            None,
            &[],
        ),
    ]
    .map(|(json, own, open)| (spec(json), own, open))
    {
        let ports = Ports::of(&spec);
        assert_eq!((ports.own, ports.open), (own, open));
    }
}

#[test]
fn a_pods_addresses_are_those_of_its_status() {
    let pod = |status: serde_json::Value| -> Pod {
        serde_json::from_value(json!({"status": status})).unwrap()
    };
    let both = json!({"podIP": "10.0.0.5", "podIPs": [{"ip": "10.0.0.5"}, {"ip": "fd00::5"}]});
    assert_eq!(addresses(&pod(both)), [ip("10.0.0.5"), ip("fd00::5")]);
    assert_eq!(
        addresses(&pod(json!({"podIP": "10.0.0.5"}))),
        [ip("10.0.0.5")]
    );
    assert_eq!(addresses(&pod(json!({}))), [] as [IpAddr; 0]);
}

/// A server with one pod, at 10.0.0.5 alone, and the time.
struct One {
    memory: Memory,
    now: Instant,
}

impl One {
    fn new(listeners: &[&str]) -> Self {
        let mut one = Self {
            memory: Memory::default(),
            now: Instant::now(),
        };
        one.knows(listeners);
        one
    }

    fn knows(&mut self, listeners: &[&str]) {
        self.has(Known::of(OWN, &[ip("10.0.0.5")], &report(listeners), true));
    }

    fn has(&mut self, known: Known) {
        let pods = HashMap::from([(POD.to_owned(), known)]);
        self.memory.update(pods, self.now);
    }

    fn due(&self) -> Vec<String> {
        let due = self.memory.due(self.now).into_iter();
        due.map(|(_, address)| address.to_string()).collect()
    }

    /// Tries all that is due; ports in `open` are taken.
    fn round(&mut self, open: &[u16]) {
        for (uid, address) in self.memory.due(self.now) {
            let outcome = if open.contains(&address.port()) {
                Outcome::Taken
            } else {
                Outcome::NotTaken
            };
            self.memory.tried(&uid, address, outcome, self.now);
        }
    }

    fn later(&mut self, wait: Duration) -> &mut Self {
        self.now += wait;
        self
    }

    fn found(&mut self) -> Option<Isolation> {
        self.memory.found().remove(POD)
    }
}

fn open(ports: &[u16]) -> Option<Isolation> {
    Some(Isolation::Open(ports.iter().copied().collect()))
}

#[test]
fn one_connection_that_is_taken_is_proof_and_one_that_is_not_is_none() {
    let mut one = One::new(&["0.0.0.0:8080"]);
    assert_eq!(one.found(), None);
    one.round(&[]);
    assert_eq!(one.found(), None, "once");
    assert!(one.due().is_empty());
    one.later(SOON).round(&[]);
    assert_eq!(one.found(), Some(Isolation::Shut), "twice");
    assert!(one.later(SOON).due().is_empty());
    one.later(AGAIN).round(&[8080]);
    assert_eq!(one.found(), open(&[8080]));
    one.later(AGAIN).round(&[]);
    assert_eq!(one.found(), open(&[8080]), "once");
    one.later(SOON).round(&[8080]);
    one.later(AGAIN).round(&[]);
    assert_eq!(one.found(), open(&[8080]), "once more, not in a row");
    one.later(SOON).round(&[]);
    assert_eq!(one.found(), Some(Isolation::Shut));
}

#[test]
fn what_is_new_is_tried_at_once_and_until_then_what_was_found_stays() {
    let mut one = One::new(&[]);
    one.round(&[]);
    one.later(SOON).round(&[]);
    assert_eq!(one.found(), Some(Isolation::Loopback));
    // Its own port was tried before it listened, a second one never.
    one.later(SOON).knows(&["0.0.0.0:3000", "0.0.0.0:8080"]);
    assert_eq!(one.due(), ["10.0.0.5:3000", "10.0.0.5:8080"]);
    assert_eq!(one.found(), Some(Isolation::Loopback));
    one.round(&[]);
    one.later(SOON).round(&[3000]);
    assert_eq!(one.found(), open(&[3000]));
    one.later(SOON).knows(&["0.0.0.0:8080"]);
    assert_eq!(one.found(), Some(Isolation::Shut), "the other is closed");
    one.later(SOON).knows(&[]);
    assert_eq!(one.found(), Some(Isolation::Loopback));
}

/// The sidecar need not be what answers on its port.
#[test]
fn the_servers_own_port_is_tried_where_nobody_says_that_it_listens() {
    let mut one = One::new(&[]);
    one.round(&[8080]);
    assert_eq!(one.found(), open(&[8080]));
}

#[test]
fn nothing_is_claimed_of_a_server_that_has_not_answered() {
    let mut one = One::new(&[]);
    let starting = || Report {
        upstream: UpstreamReport::default(),
        ..report(&[])
    };
    let has = |listening: Report| Known::of(OWN, &[ip("10.0.0.5")], &listening, true);
    one.has(has(starting()));
    one.round(&[]);
    one.later(SOON).round(&[]);
    assert_eq!(one.found(), None);
    one.later(AGAIN).round(&[8080]);
    assert_eq!(one.found(), open(&[8080]), "but what is open is open");
}

#[test]
fn a_pod_whose_sidecar_does_not_answer_proves_nothing() {
    let mut one = One::new(&["0.0.0.0:8080"]);
    one.round(&[8080]);
    let listening = report(&["0.0.0.0:8080"]);
    let silent = || Known::of(OWN, &[ip("10.0.0.5")], &listening, false);
    one.later(AGAIN).has(silent());
    assert!(one.due().is_empty(), "{:?}", one.due());
    assert_eq!(one.memory.next(), None);
    assert_eq!(one.found(), open(&[8080]));
    one.knows(&["0.0.0.0:8080"]);
    assert_eq!(one.due(), ["10.0.0.5:8080"]);
    one.memory.update(HashMap::new(), one.now);
    assert_eq!(one.found(), None, "it is gone");
}

#[test]
fn what_cannot_be_tried_is_unclear() {
    let mut one = One::new(&["0.0.0.0:8080"]);
    let untried = Outcome::Untried("Too many open files".into());
    let (address, now) = (at("10.0.0.5:8080"), one.now);
    one.memory.tried(POD, address, untried, now);
    let Some(Isolation::Unclear(why)) = one.found() else {
        panic!("{:?}", one.found())
    };
    assert_eq!(why, "10.0.0.5:8080 cannot be tried: Too many open files");
    one.later(LATER).round(&[]);
    one.later(SOON).round(&[]);
    assert_eq!(one.found(), Some(Isolation::Shut));
    // One that is known is not doubted for it.
    let untried = Outcome::Untried("Too many open files".into());
    let now = one.now;
    one.memory.tried(POD, address, untried, now);
    assert_eq!(one.found(), Some(Isolation::Shut));
    // Nor is one that is shut, where another cannot be looked at.
    one.knows(&["0.0.0.0:8080", "192.168.5.2:8080"]);
    assert!(matches!(one.found(), Some(Isolation::Unclear(_))));
}

#[test]
fn a_round_is_bounded_and_begins_with_what_was_never_tried() {
    let many: Vec<_> = (1..=40).map(|port| format!("0.0.0.0:{port}")).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    let mut one = One::new(&many);
    let mut rounds = 0;
    while one.found().is_none() {
        assert!(one.due().len() <= ROUND);
        if one.due().is_empty() {
            one.later(SOON);
        }
        one.round(&[]);
        rounds += 1;
        assert!(rounds < 100, "never done");
    }
    assert_eq!(one.found(), Some(Isolation::Shut));
    one.later(AGAIN);
    let more: Vec<_> = many.iter().copied().chain(["0.0.0.0:5000"]).collect();
    one.knows(&more);
    assert_eq!(one.due()[0], "10.0.0.5:5000");
}

#[tokio::test]
async fn a_port_counts_as_shut_only_beside_an_mcp_port_that_is_open() {
    // An address of this process alone, on which the MCP port is free.
    let [.., a, b] = std::process::id().to_be_bytes();
    let ip = IpAddr::from([127, 99, a, b]);
    let listener = TcpListener::bind((ip, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    assert_eq!(attempt(address).await, Outcome::Taken);
    drop(listener);
    let Outcome::Untried(why) = attempt(address).await else {
        panic!("nothing listens at {ip}")
    };
    assert!(why.contains(&format!("{ip}:9440")), "{why}");
    let _mcp = TcpListener::bind((ip, 9440)).await.unwrap();
    assert_eq!(attempt(address).await, Outcome::NotTaken);
    // No answer of the network: the kernel refuses by itself.
    let outcome = attempt(at("255.255.255.255:80")).await;
    assert!(matches!(outcome, Outcome::Untried(_)), "{outcome:?}");
}
