//! The text that the demo prints once the shop is open: addresses, tokens, and commands to paste.
//! Each command is one line and works in any folder; tests/readme/run pastes them all.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rushgate_local_servers as servers;

use super::{Error, SECRET_FILE, say, shop};
use crate::config::{self, Serve, Switch};
use crate::relay::topology::ORDERS_QUEUE;

const USER: &str = "user-1";
const OTHER_USER: &str = "user-2";
/// The product and the template of the printed commands; the seed has both.
const PRODUCT: &str = "americano";
const TEMPLATE: &str = "welcome";
const TOKEN_TTL: Duration = Duration::from_secs(24 * 60 * 60);

/// Prints the addresses, the tokens and the commands.
pub fn introduce(settings: &Serve, management: &str, data: &Path) -> Result<(), Error> {
    let (api, ops) = (url(settings.listen), url(settings.ops_listen));
    let broker = management.trim_end_matches("/api");
    say(format_args!("The shop is open.\n"));
    if settings.demo_shop == Switch::On {
        say(format_args!(
            "  {:<12} {api}/shop/  with 3,000 rivals at the press of a button",
            "Storefront"
        ));
    }
    say(format_args!("  {:<12} {api}/console/  asks for the admin token below", "Console"));
    say(format_args!("  {:<12} {api}", "API"));
    say(format_args!("  {:<12} {api}/docs", "Read and try"));
    say(format_args!("  {:<12} {ops}/readyz  {ops}/metrics", "Operations"));
    say(format_args!("  {:<12} {broker}  user guest, password guest\n", "RabbitMQ"));

    say(format_args!("Tokens for this demo, good for {} hours:\n", TOKEN_TTL.as_secs() / 3600));
    for (scope, subject) in [("shop", USER), ("service", "shop-backend"), ("admin", "shop-staff")] {
        let token = shop::token(settings, subject, scope, TOKEN_TTL).map_err(Error::Shop)?;
        // curl reads a header from a file, which keeps the commands below short enough to read.
        servers::write_private(&header(data, scope), &format!("Authorization: Bearer {token}\n"))?;
        say(format_args!("  {scope} ({subject})\n    {token}"));
    }
    say(format_args!("\nA token for another user:\n\n{}\n", mint(settings, data)));

    say(format_args!(
        "In another terminal: see the products, take a coupon as {USER}, order with it.\n"
    ));
    shopping(&api, data).iter().for_each(|line| say(format_args!("{line}\n")));
    say("A coupon is once per user: taken again, it is refused, and the order goes without one.\n");

    say(
        "What they left behind: in Redis, in PostgreSQL, in RabbitMQ's queue, in the metrics; and does it all agree?\n",
    );
    looking(settings, management, &ops).iter().for_each(|line| say(format_args!("{line}\n")));
    say("Ctrl-C stops everything.");
    Ok(())
}

fn shopping(api: &str, data: &Path) -> [String; 3] {
    let curl =
        format!("curl -s -H {}", shell_word(&format!("@{}", header(data, "shop").display())));
    let json = "-H 'Content-Type: application/json'";
    let coupon = format!(
        "$({curl} '{api}/v1/users/{USER}/coupons?status=available&limit=1' | grep -o '\"coupon_id\":\"[^\"]*\",')"
    );
    let order = format!(
        r#"{{{coupon}\"user_id\":\"{USER}\",\"items\":[{{\"product_id\":\"{PRODUCT}\",\"quantity\":1}}]}}"#
    );
    [
        format!("curl -s {api}/v1/products"),
        format!(
            r#"{curl} {json} -d '{{"user_id":"{USER}"}}' {api}/v1/coupon-templates/{TEMPLATE}/coupons"#
        ),
        format!(r#"{curl} {json} -d "{order}" {api}/v1/orders"#),
    ]
}

fn looking(settings: &Serve, management: &str, ops: &str) -> [String; 5] {
    let config::Servers { redis_url, database_url, .. } = &settings.servers;
    let orders =
        "SELECT order_id, user_id, status, total FROM orders ORDER BY order_id DESC LIMIT 3";
    let peek = r#"{"count":1,"ackmode":"ack_requeue_true","encoding":"auto"}"#;
    [
        format!("redis-cli -u {redis_url} HGETALL 'rg:{{0}}:meta'"),
        format!("psql {database_url} -c '{orders}'"),
        format!(
            "curl -s -u guest:guest -H 'Content-Type: application/json' -d '{peek}' \
             {management}/queues/%2F/{ORDERS_QUEUE}/get"
        ),
        format!("curl -s {ops}/metrics | grep ^rushgate_gate_requests_total"),
        format!("{} audit --redis-url {redis_url} --database-url {database_url}", program()),
    ]
}

fn mint(settings: &Serve, data: &Path) -> String {
    let secret = shell_word(&data.join(SECRET_FILE).to_string_lossy());
    let claims = &settings.auth.claims;
    let given = [("--jwt-audience", &claims.jwt_audience), ("--jwt-issuer", &claims.jwt_issuer)];
    let given = given.map(|(flag, value)| {
        value.as_ref().map_or_else(String::new, |value| format!(" {flag} {}", shell_word(value)))
    });
    format!(
        "RUSHGATE_JWT_SECRET_FILE={secret} {} token --sub {OTHER_USER} --scope shop{}",
        program(),
        given.concat()
    )
}

/// The path of this program, quoted so that a shell can start it from any folder.
fn program() -> String {
    let path = std::env::current_exe().unwrap_or_else(|_| "rushgate".into());
    shell_word(&path.to_string_lossy())
}

fn header(data: &Path, scope: &str) -> PathBuf {
    data.join(format!("{scope}.header"))
}

/// The address as a browser on this machine would use it.
fn url(address: SocketAddr) -> String {
    let local = if address.ip().is_unspecified() {
        SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), address.port())
    } else {
        address
    };
    format!("http://{local}")
}

fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "@/._-".contains(c);
    if text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_shown_as_one_that_can_be_opened() {
        for (address, shown) in [
            ("0.0.0.0:8080", "http://127.0.0.1:8080"),
            ("[::]:8080", "http://127.0.0.1:8080"),
            ("10.1.2.3:80", "http://10.1.2.3:80"),
            ("[::1]:8080", "http://[::1]:8080"),
        ] {
            assert_eq!(address.parse().map(url), Ok(shown.to_owned()));
        }
    }

    #[test]
    fn a_path_is_one_word_for_the_shell() {
        assert_eq!(shell_word("@/srv/my-shop/data.1"), "@/srv/my-shop/data.1");
        assert_eq!(shell_word("/it's here"), r"'/it'\''s here'");
    }
}
