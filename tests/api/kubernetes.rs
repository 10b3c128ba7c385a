//! The manifests in `ops/kubernetes/` agree with the service and with each other. `script/test` also compares them with
//! Kubernetes' schemas.

use serde_json::Value;

use crate::support::program;

const DEPLOYMENT: &str = include_str!("../../ops/kubernetes/deployment.yaml");
const MIGRATION: &str = include_str!("../../ops/kubernetes/migrate.yaml");
const CONFIG_MAP: &str = include_str!("../../ops/kubernetes/configmap.yaml");

#[test]
fn kubernetes_gives_a_replica_time_to_finish_its_requests() {
    let [deployment, config]: [Value; 2] =
        [DEPLOYMENT, CONFIG_MAP].map(|text| yaml_serde::from_str(text).unwrap());
    let seconds = |name: &str| {
        let text = config["data"][name].as_str().unwrap();
        text.strip_suffix('s').unwrap().parse::<u64>().unwrap()
    };
    let pod = &deployment["spec"]["template"]["spec"];
    let grace = pod["terminationGracePeriodSeconds"].as_u64().unwrap();
    let pause = &pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"];
    let shutdown = seconds("SHUTDOWN_TIMEOUT");
    assert!(grace >= pause.as_u64().unwrap() + shutdown + 5);
    // The service cuts a request off two seconds after its time limit.
    assert!(shutdown >= seconds("REQUEST_TIMEOUT") + 2);
    let update = &deployment["spec"]["strategy"]["rollingUpdate"];
    assert_eq!(update["maxUnavailable"], 0);
}

#[test]
fn the_manifests_use_settings_that_exist() {
    let [deployment, migration, config]: [Value; 3] =
        [DEPLOYMENT, MIGRATION, CONFIG_MAP].map(|text| yaml_serde::from_str(text).unwrap());
    let help = program().args(["serve", "--help"]).output().unwrap();
    let check = program().args(["check", "--help"]).output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap() + &String::from_utf8(check.stdout).unwrap();
    for (name, value) in config["data"].as_object().unwrap() {
        assert!(help.contains(&format!("[env: {name}=")), "{name}");
        assert!(value.is_string(), "{name}");
    }
    assert_eq!(config["data"]["MIGRATE_ON_START"], "false");
    let container = |object: &Value| object["spec"]["template"]["spec"]["containers"][0].clone();
    let (server, migrate) = (container(&deployment), container(&migration));
    assert_eq!(server["image"], migrate["image"]);
    assert_eq!(migrate["args"][0], "migrate");
    let version = env!("CARGO_PKG_VERSION");
    let image = server["image"].as_str().unwrap();
    assert!(image.ends_with(&format!(":{version}")), "{image}");
}
