//! Searches everything that the process prints or serves for secrets.

use super::wire::victim;
use crate::api::SECRET;
use crate::cluster::{Cluster, Instance, Private, Request};

/// A password that occurs nowhere else.
const PASSWORD: &str = "hunter2-0815-hunter2";

pub async fn secrets_looked_for(_: usize) -> usize {
    let mut tried = 0;
    let mut clean = |what: &str, text: &str, secret: &str| {
        assert!(!text.contains(secret), "{what} tells the secret: {text}");
        tried += 1;
    };
    let redis_config = vec![format!("user vault on >{PASSWORD} ~* &* +@all")];
    let cluster = Cluster::with(Private { redis_config, ..Private::default() }).await;
    let url = format!("redis://vault:{PASSWORD}@127.0.0.1:{}", cluster.redis.port());
    let folder = crate::servers::tempfile();
    let file = |name: &str, text: &str| {
        let path = folder.path.join(name);
        std::fs::write(&path, format!("{text}\n")).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let from_files = cluster
        .settings
        .without("RUSHGATE_REDIS_URL")
        .without("RUSHGATE_JWT_SECRET")
        .with("RUSHGATE_REDIS_URL_FILE", file("redis", &url))
        .with("RUSHGATE_JWT_SECRET_FILE", file("jwt", crate::cluster::SECRET))
        .with("RUST_LOG", "debug");
    // Everything works with secrets from files.
    let instance = Instance::ready(&from_files).await;
    instance.done(&Request::charge("ann", 5)).await;
    let status = instance.done(&Request::get("/v1/admin/status").admin()).await;
    let metrics = instance.ops("/metrics").await.1;
    let ready = instance.ops("/readyz").await.1;
    cluster.redis.kill().await;
    let refused = instance.send(&Request::charge("ann", 5)).await;
    let unready = instance.ops("/readyz").await.1;
    let log = instance.log().join("\n");
    for secret in [PASSWORD, crate::cluster::SECRET] {
        clean("the status", &status.to_string(), secret);
        clean("metrics", &metrics, secret);
        clean("readiness", &(ready.clone() + &unready), secret);
        clean("a refusal", &refused.body.to_string(), secret);
        clean("the log", &log, secret);
        for args in
            [&["serve", "--help"][..], &["token", "--help"], &["audit", "--help"], &["--help"]]
        {
            for settings in [&from_files, &cluster.settings.with("RUSHGATE_REDIS_URL", &url)] {
                let help = settings.run(args).await;
                clean("help", &(help.stdout + &help.stderr), secret);
            }
        }
    }
    // Errors are reported without the secrets.
    for (name, scheme) in [
        ("RUSHGATE_REDIS_URL", "redis"),
        ("RUSHGATE_DATABASE_URL", "postgres"),
        ("RUSHGATE_AMQP_URL", "amqp"),
    ] {
        for wrong in [
            format!("{scheme}://u:{PASSWORD}@127.0.0.1:1/x"),
            format!("{scheme}://u:{PASSWORD}@[:1"),
            format!("http://u:{PASSWORD}@x"),
            format!("u:{PASSWORD}"),
        ] {
            let ended = cluster.settings.with(name, wrong).run(&["serve"]).await;
            assert_eq!(ended.code, 1, "{name}: {ended:?}");
            clean(name, &(ended.stdout + &ended.stderr), PASSWORD);
        }
    }
    instance.kill().await;
    let (other, _backend) = victim(&[]).await;
    let refused = reqwest::get(format!("{}/v1/users/u/wallet", other.base)).await.unwrap();
    clean("a refusal's headers", &format!("{:?}", refused.headers()), SECRET);
    tried
}
