//! Fuzzing of the decoders with log entries, refusals, request bodies and tokens. No input may
//! panic. What a decoder accepts must decode to the same value again.

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use rushgate::domain::fact::*;
use rushgate::domain::wire::{Blob, Id, pack};
use rushgate::gate::{CancelRefusal, ChargeRefusal, IssueRefusal, OrderRefusal};
use rushgate::http::coupon_templates::PutTemplateBody;
use rushgate::http::coupons::IssueBody;
use rushgate::http::extract::parse_json;
use rushgate::http::orders::PlaceOrderBody;
use rushgate::http::products::{AdjustStockBody, PutProductBody};
use rushgate::http::wallets::ChargeBody;
use rushgate::http::{TokenVerifier, extract::Query};
use rushgate::log::{Entry, RawEntry};
use serde_json::{Value, json};
use uuid::Uuid;

const CASES: u32 = 2_000;

pub async fn decoders_fuzzed(effort: usize) -> usize {
    let cases = CASES * u32::try_from(effort).unwrap();
    // On a blocking thread, because this is CPU work.
    tokio::task::spawn_blocking(move || {
        let fuzzed: [fn(&mut TestRunner); 5] = [entries, refusals, bodies, tokens, queries];
        for fuzz in fuzzed {
            fuzz(&mut TestRunner::new(Config {
                cases,
                failure_persistence: None,
                ..Config::default()
            }));
        }
        cases as usize * fuzzed.len()
    })
    .await
    .unwrap()
}

/// A mutation of some bytes.
#[derive(Clone, Debug)]
enum Change {
    Set(usize, u8),
    Cut(usize),
    Insert(usize, Vec<u8>),
    Remove(usize, usize),
    Double(usize, usize),
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let place = 0..4_096_usize;
    let change = prop_oneof![
        (place.clone(), any::<u8>()).prop_map(|(at, byte)| Change::Set(at, byte)),
        place.clone().prop_map(Change::Cut),
        (place.clone(), prop::collection::vec(any::<u8>(), 1..9))
            .prop_map(|(at, bytes)| Change::Insert(at, bytes)),
        (place.clone(), 1..9_usize).prop_map(|(at, count)| Change::Remove(at, count)),
        (place, 1..9_usize).prop_map(|(at, count)| Change::Double(at, count)),
    ];
    prop::collection::vec(change, 0..4)
}

fn changed(mut bytes: Vec<u8>, changes: &[Change]) -> Vec<u8> {
    for change in changes {
        let length = bytes.len().max(1);
        match change {
            Change::Set(at, byte) if !bytes.is_empty() => bytes[at % length] = *byte,
            Change::Cut(at) => bytes.truncate(at % length),
            Change::Insert(at, more) => {
                drop(bytes.splice(at % length..at % length, more.iter().copied()))
            }
            Change::Remove(at, count) => {
                let at = at % length;
                bytes.drain(at.min(bytes.len())..(at + count).min(bytes.len()));
            }
            Change::Double(at, count) => {
                let at = (at % length).min(bytes.len());
                let part = bytes[at..(at + count).min(bytes.len())].to_vec();
                bytes.splice(at..at, part);
            }
            Change::Set(..) => {}
        }
    }
    bytes
}

fn payloads() -> Vec<Vec<u8>> {
    let id = || Id(Uuid::from_u128(0x0193_9e5a_7c2f_7b3e_9d54_8a1c_6f2e_0b47));
    let idempotency =
        || Some(Idempotency { scope: "ann key".into(), request_hash: Blob(vec![7; 16]) });
    let line = PlacedLine {
        product_id: "mug".into(),
        name: "Mug".into(),
        unit_price: 100,
        quantity: 2,
        amount: 200,
        stock_after: 8,
    };
    let issued = CouponIssued {
        coupon_id: id(),
        template_id: "t".into(),
        user_id: "ann".into(),
        serial: 1,
        remaining: 4,
        issued_at: 1_764_000_000_000,
        expires_at: 1_795_536_000_000,
        idempotency: idempotency(),
        terms_number: None,
    };
    let placed = OrderPlaced {
        order_id: id(),
        user_id: "ann".into(),
        lines: vec![line.clone(), line],
        subtotal: 400,
        discount: 0,
        total: 400,
        coupon_id: Some(id()),
        balance_after: 600,
        ordered_at: 1_764_000_000_000,
        idempotency: None,
        more: None,
    };
    let charged = WalletCharged {
        charge_id: id(),
        user_id: "ann".into(),
        amount: 5,
        balance_after: 5,
        charged_at: 1,
        idempotency: idempotency(),
    };
    let payload = |kind: &str, fact: Vec<u8>| {
        pack(&(1_u64, kind, 1_764_000_000_000_i64, vec![Blob(fact.clone()), Blob(fact)])).unwrap()
    };
    vec![
        payload("issue_coupon", pack(&issued).unwrap()),
        payload("place_order", pack(&placed).unwrap()),
        payload("charge_wallet", pack(&charged).unwrap()),
    ]
}

fn entries(runner: &mut TestRunner) {
    let payloads = payloads();
    let decode = |payload: Vec<u8>, traces: Vec<u8>| {
        RawEntry { epoch: 1, seq: 1, payload, tip: String::new(), traces }.decode()
    };
    for payload in &payloads {
        decode(payload.clone(), vec![]).expect("as it was made");
    }
    let bytes = || prop::collection::vec(any::<u8>(), 0..200);
    let case = (0..payloads.len(), changes(), bytes(), bytes());
    runner
        .run(&case, |(which, changes, noise, traces)| {
            drop(decode(noise, traces.clone()));
            let mutant = changed(payloads[which].clone(), &changes);
            if let Ok(Entry { facts, raw_facts, .. }) = decode(mutant.clone(), traces) {
                // Accepted: it must decode to the same again, with one fact for each raw fact.
                let again =
                    decode(mutant, vec![]).map_err(|e| TestCaseError::fail(e.to_string()))?;
                prop_assert_eq!((again.facts, again.raw_facts), (facts, raw_facts));
            }
            Ok(())
        })
        .unwrap();
}

fn refusals(runner: &mut TestRunner) {
    let noise = prop::collection::vec(any::<u8>(), 0..64);
    runner
        .run(&noise, |bytes| {
            drop(rmp_serde::from_slice::<IssueRefusal>(&bytes));
            drop(rmp_serde::from_slice::<OrderRefusal>(&bytes));
            drop(rmp_serde::from_slice::<ChargeRefusal>(&bytes));
            drop(rmp_serde::from_slice::<CancelRefusal>(&bytes));
            Ok(())
        })
        .unwrap();
}

/// Arbitrary JSON.
fn any_json() -> impl Strategy<Value = Value> {
    let words = [
        "user_id",
        "items",
        "product_id",
        "quantity",
        "amount",
        "name",
        "type",
        "value",
        "\u{0}",
        "한",
    ];
    let key = prop_oneof![prop::sample::select(words.to_vec()).prop_map(str::to_owned), ".{0,8}"];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,20}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::vec((key.clone(), inner), 0..6)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

fn bodies(runner: &mut TestRunner) {
    let good = [
        json!({"user_id": "ann", "items": [{"product_id": "mug", "quantity": 2}], "expected_total": 5}),
        json!({"user_id": "ann"}),
        json!({"amount": 5}),
        json!({"name": "Mug", "price": 100, "status": "on_sale", "stock": 5}),
        json!({"delta": -5, "reason": "broken"}),
        json!({"name": "T", "discount": {"type": "percent", "value": 5, "max": 9}, "max_issued": 5,
            "issue_from": "2026-11-22T09:00:00Z", "issue_until": "2026-11-23T09:00:00Z"}),
    ];
    let parse = |body: &[u8]| {
        let codes = [
            parse_json::<PlaceOrderBody>(body).err(),
            parse_json::<IssueBody>(body).err(),
            parse_json::<ChargeBody>(body).err(),
            parse_json::<PutProductBody>(body).err(),
            parse_json::<AdjustStockBody>(body).err(),
            parse_json::<PutTemplateBody>(body).err(),
        ];
        codes.map(|problem| problem.map(|problem| problem.code().status().as_u16()))
    };
    for (at, body) in good.iter().enumerate() {
        assert_eq!(parse(body.to_string().as_bytes())[at], None, "{body}");
    }
    let case = (0..good.len(), changes(), any_json());
    runner
        .run(&case, |(which, changes, value)| {
            let is_json =
                |body: &[u8]| serde_json::from_slice::<serde::de::IgnoredAny>(body).is_ok();
            let mutant = changed(good[which].to_string().into_bytes(), &changes);
            for body in [mutant, value.to_string().into_bytes()] {
                let statuses = parse(&body);
                // Invalid JSON is a 400 for every decoder. Valid JSON is accepted, or has another
                // fault.
                for status in statuses.into_iter().flatten() {
                    prop_assert!([400, 422].contains(&status));
                    prop_assert!(
                        is_json(&body) || status == 400,
                        "{}",
                        String::from_utf8_lossy(&body)
                    );
                }
                prop_assert!(is_json(&body) || statuses.iter().all(Option::is_some));
            }
            Ok(())
        })
        .unwrap();
}

fn tokens(runner: &mut TestRunner) {
    let verifier = TokenVerifier::from_secret(b"0123456789abcdef0123456789abcdef");
    let ann = rushgate::domain::UserId::parse("ann").unwrap();
    let hour = std::time::Duration::from_secs(3_600);
    let good = rushgate::http::mint_token(b"0123456789abcdef0123456789abcdef", &ann, "shop", hour)
        .unwrap();
    assert!(verifier.verify(&good).is_ok());
    let case = (changes(), "[ -~]{0,200}");
    runner
        .run(&case, |(changes, noise)| {
            prop_assert!(verifier.verify(&noise).is_err());
            let mutant =
                String::from_utf8_lossy(&changed(good.clone().into_bytes(), &changes)).into_owned();
            prop_assert!(mutant == good || verifier.verify(&mutant).is_err(), "{}", mutant);
            Ok(())
        })
        .unwrap();
}

fn queries(runner: &mut TestRunner) {
    runner
        .run(&"[!-~]{0,60}", |text| {
            if let Ok(uri) = format!("/v1/products?{text}").parse()
                && let Ok(mut query) = Query::of(&uri)
            {
                drop(query.page::<rushgate::domain::ProductId>());
                drop(query.finish());
            }
            Ok(())
        })
        .unwrap();
}
