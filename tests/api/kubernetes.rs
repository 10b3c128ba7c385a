//! The manifests in `ops/kubernetes/` agree with the service and with each other. `script/test` also compares them with
//! Kubernetes' schemas.

use serde_json::Value;

use crate::support::program;

const DEPLOYMENT: &str = include_str!("../../ops/kubernetes/deployment.yaml");
const MIGRATION: &str = include_str!("../../ops/kubernetes/migrate.yaml");
const CONFIG_MAP: &str = include_str!("../../ops/kubernetes/configmap.yaml");
const SERVICE: &str = include_str!("../../ops/kubernetes/service.yaml");
const INGRESS: &str = include_str!("../../ops/kubernetes/ingress.yaml");
const NETWORK_POLICIES: &str = include_str!("../../ops/kubernetes/networkpolicy.yaml");

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

#[test]
fn from_outside_only_the_public_port_can_be_reached() {
    let parsed = |text| -> Value { yaml_serde::from_str(text).unwrap() };
    let (config, ingress) = (parsed(CONFIG_MAP), parsed(INGRESS));
    let container = parsed(DEPLOYMENT)["spec"]["template"]["spec"]["containers"][0].clone();
    for (name, setting) in [("http", "LISTEN_ADDR"), ("public", "PUBLIC_LISTEN_ADDR")] {
        let mut ports = container["ports"].as_array().unwrap().iter();
        let port = ports.find(|port| port["name"] == name).unwrap();
        let address = config["data"][setting].as_str().unwrap();
        assert_eq!(address, format!("0.0.0.0:{}", port["containerPort"]));
        let service = parsed(SERVICE);
        let mut ports = service["spec"]["ports"].as_array().unwrap().iter();
        let port = ports.find(|port| port["name"] == name).unwrap();
        assert_eq!(port["targetPort"], name);
    }
    for rule in ingress["spec"]["rules"].as_array().unwrap() {
        for path in rule["http"]["paths"].as_array().unwrap() {
            assert_eq!(path["backend"]["service"]["port"]["name"], "public");
        }
    }

    let policies: Vec<Value> = NETWORK_POLICIES.split("\n---\n").map(parsed).collect();
    let server = policies
        .iter()
        .find(|policy| policy["metadata"]["name"] == "dojo-payment-links-server");
    let rules = server.unwrap()["spec"]["ingress"].as_array().unwrap();
    let namespace = |rule: &Value| {
        let selector = &rule["from"][0]["namespaceSelector"]["matchLabels"];
        selector["kubernetes.io/metadata.name"].clone()
    };
    let ports = |from: &str| {
        let rules = rules.iter().filter(|rule| namespace(rule) == from);
        let ports = rules.flat_map(|rule| rule["ports"].as_array().unwrap());
        let ports: Vec<_> = ports.map(|port| port["port"].clone()).collect();
        ports
    };
    assert_eq!(ports("ingress"), ["public"]);
    assert_eq!(ports("monitoring"), ["http"]);
    // A rule without ports would open all of them, and one without senders would open them for everybody.
    for rule in rules {
        assert_eq!(rule["from"].as_array().map(Vec::len), Some(1), "{rule}");
        assert_eq!(rule["ports"].as_array().map(Vec::len), Some(1), "{rule}");
    }
}
