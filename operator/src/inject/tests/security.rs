//! The Pod Security Standard `restricted` of version 1.33, as
//! <https://kubernetes.io/docs/concepts/security/pod-security-standards/> has it.

use k8s_openapi::api::core::v1::{
    AppArmorProfile, PodSecurityContext, SELinuxOptions, SeccompProfile,
};

use super::*;

const VOLUMES: [&str; 9] = [
    "name",
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
];
const SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];
const TYPES: [&str; 5] = [
    "",
    "container_t",
    "container_init_t",
    "container_kvm_t",
    "container_engine_t",
];
const APPARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";

/// All that a pod does against the standard.
pub(super) fn violations(pod: &Pod) -> Vec<String> {
    let spec = pod.spec.clone().unwrap_or_default();
    let context = spec.security_context.clone().unwrap_or_default();
    let mut found = of_pod(&spec, &context);
    for (key, value) in pod.metadata.annotations.iter().flatten() {
        let is_good = value == "runtime/default" || value.starts_with("localhost/");
        found.extend((key.starts_with(APPARMOR) && !is_good).then(|| key.clone()));
    }
    let init = spec.init_containers.iter().flatten();
    for container in init.chain(&spec.containers) {
        let of = of_container(&context, container).into_iter();
        found.extend(of.map(|what| format!("{}: {what}", container.name)));
    }
    found
}

fn of_pod(spec: &PodSpec, context: &PodSecurityContext) -> Vec<String> {
    let mut found = Vec::new();
    let windows = context.windows_options.as_ref();
    for (what, is_wrong) in [
        ("hostNetwork", spec.host_network == Some(true)),
        ("hostPID", spec.host_pid == Some(true)),
        ("hostIPC", spec.host_ipc == Some(true)),
        ("runAsUser", context.run_as_user == Some(0)),
        ("appArmorProfile", !apparmor(&context.app_armor_profile)),
        ("seLinuxOptions", !selinux(&context.se_linux_options)),
        (
            "seccompProfile",
            context.seccomp_profile.is_some() && !seccomp(&context.seccomp_profile),
        ),
        (
            "hostProcess",
            windows.is_some_and(|it| it.host_process == Some(true)),
        ),
    ] {
        found.extend(is_wrong.then(|| what.to_owned()));
    }
    for volume in spec.volumes.iter().flatten() {
        let volume = serde_json::to_value(volume).unwrap();
        let kinds = volume.as_object().unwrap().keys().cloned();
        found.extend(kinds.filter(|kind| !VOLUMES.contains(&kind.as_str())));
    }
    let sysctls = context.sysctls.iter().flatten();
    let sysctls = sysctls.filter(|it| !SYSCTLS.contains(&it.name.as_str()));
    found.extend(sysctls.map(|it| it.name.clone()));
    found
}

/// What a container does against the standard, with what the pod sets for it.
pub(super) fn of_container(pod: &PodSecurityContext, container: &Container) -> Vec<&'static str> {
    let own = container.security_context.clone().unwrap_or_default();
    let capabilities = own.capabilities.unwrap_or_default();
    let dropped = capabilities.drop.unwrap_or_default();
    let added = capabilities.add.unwrap_or_default();
    let mut ports = container.ports.iter().flatten();
    let profile = own.seccomp_profile.or(pod.seccomp_profile.clone());
    let apparmor_profile = own.app_armor_profile.or(pod.app_armor_profile.clone());
    let options = own.se_linux_options.or(pod.se_linux_options.clone());
    let windows = own.windows_options.unwrap_or_default();
    let found = [
        ("privileged", own.privileged == Some(true)),
        ("drop", !dropped.iter().any(|it| it == "ALL")),
        ("add", added.iter().any(|it| it != "NET_BIND_SERVICE")),
        (
            "hostPort",
            ports.any(|it| it.host_port.is_some_and(|it| it != 0)),
        ),
        (
            "procMount",
            own.proc_mount.is_some_and(|it| it != "Default"),
        ),
        (
            "allowPrivilegeEscalation",
            own.allow_privilege_escalation != Some(false),
        ),
        (
            "runAsNonRoot",
            own.run_as_non_root.or(pod.run_as_non_root) != Some(true),
        ),
        ("runAsUser", own.run_as_user.or(pod.run_as_user) == Some(0)),
        ("seccompProfile", !seccomp(&profile)),
        ("appArmorProfile", !apparmor(&apparmor_profile)),
        ("seLinuxOptions", !selinux(&options)),
        ("hostProcess", windows.host_process == Some(true)),
    ];
    let wrong = found.into_iter().filter(|(_, is_wrong)| *is_wrong);
    wrong.map(|(what, _)| what).collect()
}

fn seccomp(profile: &Option<SeccompProfile>) -> bool {
    let types = ["RuntimeDefault", "Localhost"];
    profile
        .as_ref()
        .is_some_and(|profile| types.contains(&profile.type_.as_str()))
}

fn apparmor(profile: &Option<AppArmorProfile>) -> bool {
    let types = ["RuntimeDefault", "Localhost"];
    profile
        .as_ref()
        .is_none_or(|profile| types.contains(&profile.type_.as_str()))
}

fn selinux(options: &Option<SELinuxOptions>) -> bool {
    let is_set = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
    options.as_ref().is_none_or(|options| {
        let type_ = options.type_.as_deref().unwrap_or_default();
        TYPES.contains(&type_) && !is_set(&options.user) && !is_set(&options.role)
    })
}

#[test]
fn the_standard_is_what_it_is() {
    const SPEC: &str = "/spec";
    const POD: &str = "/spec/securityContext";
    const CONTAINER: &str = "/spec/containers/0";
    const OWN: &str = "/spec/containers/0/securityContext";
    let good = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {},
        "spec": {
            "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{"name": "web", "securityContext": {
                "allowPrivilegeEscalation": false,
                "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]},
            }}],
            "volumes": [{"name": "a", "emptyDir": {}}, {"name": "b", "secret": {"secretName": "s"}}],
        },
    });
    let pod = |value| serde_json::from_value::<Pod>(value).unwrap();
    assert_eq!(violations(&pod(good.clone())), [""; 0]);
    for (place, patch, wanted) in [
        (SPEC, "{hostIPC: true}", "hostIPC"),
        (SPEC, "{hostNetwork: true}", "hostNetwork"),
        (
            SPEC,
            "{volumes: [{name: a, hostPath: {path: /}}]}",
            "hostPath",
        ),
        (POD, "{runAsNonRoot: false}", "web: runAsNonRoot"),
        (POD, "{runAsNonRoot: null}", "web: runAsNonRoot"),
        (POD, "{runAsUser: 0}", "web: runAsUser"),
        (POD, "{seccompProfile: null}", "web: seccompProfile"),
        (
            POD,
            "{seccompProfile: {type: Unconfined}}",
            "seccompProfile",
        ),
        (
            POD,
            "{appArmorProfile: {type: Unconfined}}",
            "appArmorProfile",
        ),
        (POD, "{seLinuxOptions: {type: spc_t}}", "seLinuxOptions"),
        (POD, "{seLinuxOptions: {user: root}}", "web: seLinuxOptions"),
        (POD, "{sysctls: [{name: kernel.x, value: x}]}", "kernel.x"),
        (CONTAINER, "{securityContext: null}", "web: drop"),
        (
            CONTAINER,
            "{ports: [{containerPort: 1, hostPort: 1}]}",
            "web: hostPort",
        ),
        (OWN, "{capabilities: {add: [CHOWN]}}", "web: add"),
        (
            OWN,
            "{allowPrivilegeEscalation: true}",
            "web: allowPrivilegeEscalation",
        ),
        (OWN, "{privileged: true}", "web: privileged"),
        (OWN, "{procMount: Unmasked}", "web: procMount"),
    ] {
        let patch = serde_yaml::from_str(patch).unwrap();
        let mut bad = good.clone();
        json_patch::merge(bad.pointer_mut(place).unwrap(), &patch);
        let found = violations(&pod(bad));
        assert!(found.iter().any(|it| it == wanted), "{patch}: {found:?}");
    }
}
