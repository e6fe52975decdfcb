//! An instance ends within its grace, also when every server that it works with ends or hangs in
//! the same moment.

use std::time::{Duration, Instant};

use futures::future::join3;
use nix::sys::signal::Signal;
use rushgate::config::bounds::SHUTDOWN_TIMEOUT;

use crate::cluster::*;

#[tokio::test]
async fn it_ends_in_time_when_all_servers_end_in_the_same_moment() {
    let private = Private { postgres: true, rabbitmq: true, ..Private::default() };
    let cluster = Cluster::with(private).await;
    let (postgres, rabbitmq) =
        (cluster.postgres.as_ref().unwrap(), cluster.rabbitmq.as_ref().unwrap());
    let kill = async || {
        futures::join!(cluster.redis.kill(), postgres.kill(), rabbitmq.kill());
    };
    let pause = || {
        cluster.redis.pause();
        postgres.pause();
        rabbitmq.pause();
    };
    let resume = || {
        cluster.redis.resume();
        postgres.resume();
        rabbitmq.resume();
    };
    for round in 0..5 {
        let hangs = round % 2 == 1;
        let instance = cluster.start().await;
        instance.done(&Request::put_product("mug", 100, 50)).await;
        let end = async {
            tokio::time::sleep(Duration::from_millis(20 * round)).await;
            if hangs {
                pause();
                // What is in flight then waits for longer than a stopping instance does.
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            let asked = Instant::now();
            instance.signal(Signal::SIGTERM);
            if !hangs {
                kill().await;
            }
            asked
        };
        let ((), (), asked) = join3(traffic(&instance), orders(&instance), end).await;
        let servers = if hangs { "hang" } else { "end" };
        instance.ended().await;
        let took = asked.elapsed();
        println!("round {round}, the servers {servers}: ended after {took:?}");
        assert!(took < SHUTDOWN_TIMEOUT, "the servers {servers}: {took:?}");
        if hangs {
            resume();
        } else {
            futures::try_join!(cluster.redis.restart(), postgres.restart(), rabbitmq.restart())
                .unwrap();
        }
    }
    // Not the queue: a single RabbitMQ node may have lost its leader by so many crashes.
    let instance = cluster.start().await;
    cluster.settings.run(&["audit", "--wait", "30s"]).await.assert_success();
    instance.stop().await;
}

/// Requests of several kinds, until the port is closed.
async fn traffic(instance: &Instance) {
    let requests = [
        Request::charge("ann", 1_000),
        Request::order("ann", "mug", 1),
        Request::get("/v1/users/ann/orders"),
        Request::get("/v1/products/mug"),
    ];
    for _ in 0..20 {
        for request in &requests {
            if instance.try_send(request).await.is_err() {
                return;
            }
        }
    }
}

/// Reads from PostgreSQL, one after the other, until the port is closed.
async fn orders(instance: &Instance) {
    while instance.try_send(&Request::get("/v1/users/ann/orders")).await.is_ok() {}
}
