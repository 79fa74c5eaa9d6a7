//! What the operator writes into pods of others, the sidecar reads.
#![allow(clippy::unwrap_used, missing_docs)]

use clap::Parser;
use operator::{
    desired::{Owner, SidecarImage},
    inject::{self, Target, testing},
};
use sidecar::{app_probes::AppProbes, serve};

const PODS: u64 = 2000;

/// As `toolward-sidecar serve` reads its command line.
#[derive(Parser)]
struct Serve {
    #[command(flatten)]
    _args: serve::Args,
}

#[test]
fn a_sidecar_reads_what_it_is_told() {
    let servers = testing::servers().unwrap();
    let image = SidecarImage {
        image: "registry.example/sidecar:1".to_owned(),
        pull_policy: "IfNotPresent".to_owned(),
    };
    let mut asked = 0;
    for seed in 0..PODS {
        let pod = testing::pod(seed);
        let name = inject::server_of(&pod).unwrap().unwrap();
        let mut named = servers.iter();
        let server = named.find(|server| server.metadata.name.as_deref() == Some(name));
        let owner = Owner {
            namespace: "shop".to_owned(),
            name: name.to_owned(),
            uid: "0c5f4e6a-1111-2222-3333-444455556666".to_owned(),
        };
        let target = Target {
            owner: &owner,
            spec: &server.unwrap().spec,
            sidecar: &image,
        };
        let spec = inject::inject(&pod, &target).unwrap().pod.spec.unwrap();
        let init = spec.init_containers.unwrap();
        let sidecar = init
            .iter()
            .find(|it| it.name == "toolward-sidecar")
            .unwrap();
        let args = sidecar.args.as_ref().unwrap();
        if let Err(error) = Serve::try_parse_from(args) {
            panic!("pod {seed}: {error}");
        }
        let told = args.iter().position(|arg| arg == "--app-probes");
        let told = told.map_or("{}", |at| args[at + 1].as_str());
        let probes = AppProbes::parse(told).unwrap_or_else(|error| panic!("{error:#}: {told}"));
        for container in init.iter().chain(&spec.containers) {
            let own = [
                &container.liveness_probe,
                &container.readiness_probe,
                &container.startup_probe,
            ];
            let paths = own.into_iter().flatten();
            let paths = paths.filter_map(|probe| probe.http_get.as_ref()?.path.as_deref());
            for path in paths.filter(|path| path.starts_with("/probe/")) {
                assert!(probes.at(path).is_some(), "pod {seed}: {path}: {told}");
                asked += 1;
            }
        }
    }
    assert!(asked > 500, "{asked} probes in {PODS} pods");
}
