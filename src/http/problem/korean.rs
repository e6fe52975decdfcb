//! Titles and details of problems in Korean. A detail is made of the code and the problem's members,
//! so it may say less than the English one, which is made where the problem arises.

use jiff::tz::{Offset, TimeZone};
use serde_json::Value;

use super::Code;

/// What a detail can be made of.
#[derive(Clone, Copy)]
pub struct Members<'a> {
    pub members: &'a [(&'static str, Value)],
    pub retry_after: Option<u64>,
}

impl Members<'_> {
    fn get(&self, name: &str) -> Option<&Value> {
        self.members.iter().find(|(found, _)| *found == name).map(|(_, value)| value)
    }

    fn text(&self, name: &str) -> &str {
        self.get(name).and_then(Value::as_str).unwrap_or("?")
    }

    fn number(&self, name: &str) -> String {
        self.get(name).and_then(Value::as_u64).map_or_else(|| "?".to_owned(), grouped)
    }

    /// Won.
    fn won(&self, name: &str) -> String {
        format!("{}원", self.number(name))
    }

    /// A time as it is in Korea.
    fn time(&self, name: &str) -> String {
        let text = self.text(name);
        korean_time(text).unwrap_or_else(|| text.to_owned())
    }

    fn secs(&self) -> u64 {
        self.retry_after.unwrap_or(1)
    }
}

/// With commas: 1,000,000.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() * 4 / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

fn korean_time(rfc3339: &str) -> Option<String> {
    let time: jiff::Timestamp = rfc3339.parse().ok()?;
    let time = time.to_zoned(TimeZone::fixed(Offset::from_hours(9).ok()?));
    Some(format!(
        "{}년 {}월 {}일 {:02}:{:02}:{:02}(한국 시각)",
        time.year(),
        time.month(),
        time.day(),
        time.hour(),
        time.minute(),
        time.second()
    ))
}

pub fn title(code: Code) -> &'static str {
    match code {
        Code::MalformedRequest => "요청을 읽을 수 없습니다",
        Code::Unauthenticated => "유효한 토큰이 필요합니다",
        Code::Forbidden => "이 토큰으로는 할 수 없습니다",
        Code::ProductNotFound => "상품이 없습니다",
        Code::CouponTemplateNotFound => "쿠폰 템플릿이 없습니다",
        Code::CouponNotFound => "쿠폰이 없습니다",
        Code::OrderNotFound => "주문이 없습니다",
        Code::UserNotFound => "사용자가 없습니다",
        Code::RouteNotFound => "경로가 없습니다",
        Code::MethodNotAllowed => "지원하지 않는 메서드입니다",
        Code::RequestTimeout => "요청 본문이 너무 늦게 도착했습니다",
        Code::SoldOut => "쿠폰이 모두 소진되었습니다",
        Code::AlreadyIssued => "이미 발급받은 쿠폰입니다",
        Code::IssuanceNotOpen => "아직 쿠폰 발급 기간이 아닙니다",
        Code::IssuanceClosed => "쿠폰 발급 기간이 끝났습니다",
        Code::InsufficientStock => "재고가 부족합니다",
        Code::InsufficientBalance => "잔액이 부족합니다",
        Code::BalanceLimitExceeded => "지갑의 한도를 넘습니다",
        Code::ProductNotOnSale => "판매 중인 상품이 아닙니다",
        Code::SaleNotOpen => "아직 판매가 시작되지 않았습니다",
        Code::SaleEnded => "판매가 끝났습니다",
        Code::PurchaseLimitExceeded => "한 사람이 살 수 있는 수량을 넘습니다",
        Code::TooManyPending => "결제를 기다리는 주문이 너무 많습니다",
        Code::HoldExpired => "결제 시한이 지난 주문입니다",
        Code::AlreadyConfirmed => "이미 결제된 주문입니다",
        Code::OrderCancelled => "취소된 주문입니다",
        Code::CouponNotAvailable => "이미 사용한 쿠폰입니다",
        Code::CouponExpired => "쿠폰의 유효 기간이 지났습니다",
        Code::SubtotalTooLow => "쿠폰의 최소 주문 금액보다 적습니다",
        Code::PriceChanged => "주문 금액이 달라졌습니다",
        Code::StockBelowZero => "재고가 0보다 작아집니다",
        Code::LimitBelowIssued => "이미 더 많은 쿠폰이 발급되었습니다",
        Code::BodyTooLarge => "요청 본문이 너무 큽니다",
        Code::UnsupportedMediaType => "본문은 JSON이어야 합니다",
        Code::InvalidField => "올바르지 않은 값이 있습니다",
        Code::IdempotencyKeyReused => "다른 요청에 사용한 키입니다",
        Code::RateLimited => "요청이 너무 많습니다",
        Code::InternalError => "Rushgate에 오류가 발생했습니다",
        Code::GateUnavailable => "지금은 게이트가 판정할 수 없습니다",
        Code::Overloaded => "한꺼번에 너무 많은 요청이 들어왔습니다",
        Code::BacklogFull => "데이터베이스가 너무 뒤처져 있습니다",
        Code::OutcomeUnknown => "처리되었는지 알 수 없습니다",
        Code::TruthUnavailable => "데이터베이스가 제때 응답하지 않습니다",
    }
}

pub fn detail(code: Code, of: Members<'_>) -> String {
    let retry = |what: &str| {
        format!("{what} 변경된 것은 없습니다. {}초 뒤에 다시 시도하십시오.", of.secs())
    };
    match code {
        Code::MalformedRequest => {
            "경로, 쿼리, 헤더, 본문 중에 읽을 수 없는 것이 있습니다. 요청을 고쳐서 다시 보내십시오."
                .into()
        }
        Code::Unauthenticated => unauthenticated(of.text("reason")).into(),
        Code::Forbidden => {
            "이 토큰의 스코프로는 할 수 없는 일입니다. 필요한 스코프가 있는 토큰을 사용하십시오."
                .into()
        }
        Code::ProductNotFound => {
            format!("상품 `{}`이(가) 없습니다. 장바구니에서 빼 주십시오.", of.text("product_id"))
        }
        Code::CouponTemplateNotFound => {
            format!("쿠폰 템플릿 `{}`이(가) 없습니다. id를 확인하십시오.", of.text("template_id"))
        }
        Code::CouponNotFound => "사용자에게 그런 쿠폰이 없습니다. 쿠폰 없이 주문하십시오.".into(),
        Code::OrderNotFound => "해당 id의 주문이 없습니다.".into(),
        Code::UserNotFound => {
            "해당 사용자가 없거나, 이 토큰으로는 그 사용자를 대신할 수 없습니다.".into()
        }
        Code::RouteNotFound => "해당 경로가 없습니다. 모든 경로는 /docs에 있습니다.".into(),
        Code::MethodNotAllowed => {
            "이 경로가 지원하지 않는 메서드입니다. 지원하는 메서드는 `Allow` 헤더에 있습니다."
                .into()
        }
        Code::RequestTimeout => {
            "요청 본문이 제한 시간 안에 도착하지 않았습니다. 다시 보내십시오.".into()
        }
        Code::SoldOut => "이 쿠폰은 준비된 수량이 모두 발급되었습니다.".into(),
        Code::AlreadyIssued => {
            "이 쿠폰은 한 사람에게 한 장만 발급되며, 이미 발급받았습니다.".into()
        }
        Code::IssuanceNotOpen => {
            format!("쿠폰은 {}부터 발급됩니다. 그때 다시 시도하십시오.", of.time("issue_from"))
        }
        Code::IssuanceClosed => {
            format!("쿠폰은 {}까지 발급되었습니다.", of.time("issue_until"))
        }
        Code::InsufficientStock => format!(
            "상품 `{}`은(는) {}개만 남아 있습니다. 수량을 줄이거나 상품을 빼 주십시오.",
            of.text("product_id"),
            of.number("available")
        ),
        Code::InsufficientBalance => format!(
            "지갑에서 {}을 결제해야 하는데 지갑에는 {}이 있습니다. 먼저 충전해 주십시오.",
            of.won("required"),
            of.won("balance")
        ),
        Code::BalanceLimitExceeded => format!(
            "지갑에 {}이 있어, 더하면 한도인 {}을 넘습니다.",
            of.won("balance"),
            of.won("limit")
        ),
        Code::ProductNotOnSale => format!(
            "상품 `{}`은(는) 판매가 중지되었습니다. 주문에서 빼 주십시오.",
            of.text("product_id")
        ),
        Code::SaleNotOpen => format!(
            "상품 `{}`은(는) {}부터 판매됩니다. 그때 다시 시도하십시오.",
            of.text("product_id"),
            of.time("sale_from")
        ),
        Code::SaleEnded => format!(
            "상품 `{}`은(는) {}까지 판매되었습니다. 주문에서 빼 주십시오.",
            of.text("product_id"),
            of.time("sale_until")
        ),
        Code::PurchaseLimitExceeded => format!(
            "상품 `{}`은(는) 한 사람이 {}개까지 살 수 있습니다. 이미 {}개를 구매했고, 이번에 {}개를 주문했습니다.",
            of.text("product_id"),
            of.number("limit"),
            of.number("bought"),
            of.number("requested")
        ),
        Code::TooManyPending => format!(
            "결제를 기다리는 주문은 {}건까지 둘 수 있습니다. 먼저 하나를 결제하거나 취소하십시오.",
            of.number("limit")
        ),
        Code::HoldExpired => format!(
            "이 주문은 {}까지 결제되지 않아 해제되었습니다. 외부에서 결제된 금액은 환불해야 합니다. 다시 주문하십시오.",
            of.time("hold_expires_at")
        ),
        Code::AlreadyConfirmed => {
            "이미 결제된 주문입니다. 다른 결제도 이루어졌다면 그중 하나는 환불해야 합니다.".into()
        }
        Code::OrderCancelled => {
            "취소된 주문입니다. 외부에서 결제된 금액이 있다면 환불해야 합니다.".into()
        }
        Code::CouponNotAvailable => "다른 주문에 이미 사용한 쿠폰입니다.".into(),
        Code::CouponExpired => format!("쿠폰이 {}에 만료되었습니다.", of.time("expired_at")),
        Code::SubtotalTooLow => format!(
            "이 쿠폰은 {} 이상 주문할 때 쓸 수 있고, 이 주문은 {}입니다. 더 주문하거나 쿠폰을 빼 주십시오.",
            of.won("required"),
            of.won("subtotal")
        ),
        Code::PriceChanged => format!(
            "주문 금액이 {}으로 바뀌었습니다. 새 금액을 확인하고 다시 주문하십시오.",
            of.won("total")
        ),
        Code::StockBelowZero => format!(
            "상품 `{}`의 재고는 {}개이므로 {}개를 뺄 수 없습니다.",
            of.text("product_id"),
            of.number("available"),
            of.number("required")
        ),
        Code::LimitBelowIssued => format!(
            "쿠폰이 이미 {}장 발급되었습니다. `max_issued`는 그보다 작을 수 없습니다.",
            of.number("issued")
        ),
        Code::BodyTooLarge => "요청 본문은 16 KiB까지 보낼 수 있습니다.".into(),
        Code::UnsupportedMediaType => {
            "본문을 `Content-Type: application/json`으로 보내십시오.".into()
        }
        Code::InvalidField => match of.text("field") {
            "" => "요청 본문이 규칙에 맞지 않습니다. /docs에서 규칙을 확인하십시오.".into(),
            field => {
                format!("`{field}`의 값이 규칙에 맞지 않습니다. /docs에서 규칙을 확인하십시오.")
            }
        },
        Code::IdempotencyKeyReused => {
            "이 `Idempotency-Key`는 24시간 안에 다른 요청에 사용되었습니다. 새 키를 사용하십시오."
                .into()
        }
        Code::RateLimited => retry("정해진 것보다 많은 요청을 보냈습니다."),
        Code::InternalError => {
            "Rushgate가 응답하지 못했습니다. 원인은 서버의 로그에 있습니다. 결함으로 알려 주십시오."
                .into()
        }
        Code::GateUnavailable => retry("게이트가 닫혀 있거나 연결할 수 없습니다."),
        Code::Overloaded => retry("처리를 기다리는 요청이 너무 많습니다."),
        Code::BacklogFull => retry("PostgreSQL이 게이트보다 너무 뒤처져 있습니다."),
        Code::OutcomeUnknown => {
            "요청을 게이트에 보냈으나 응답이 없어, 처리되었을 수도 있고 아닐 수도 있습니다. 같은 \
             `Idempotency-Key`로 다시 보내십시오. 키가 없었다면 먼저 조회하여 확인하십시오."
                .into()
        }
        Code::TruthUnavailable => {
            format!(
                "PostgreSQL이 제때 응답하지 않았습니다. {}초 뒤에 다시 시도하십시오.",
                of.secs()
            )
        }
    }
}

fn unauthenticated(reason: &str) -> &'static str {
    match reason {
        "missing" => "`Authorization: Bearer <토큰>` 헤더를 보내십시오.",
        "expired" => "토큰이 만료되었습니다. 새 토큰을 받으십시오.",
        _ => "이 서비스가 받아들이지 않는 토큰입니다. 새 토큰을 받으십시오.",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn is_korean(text: &str) -> bool {
        text.chars().any(|c| ('가'..='힣').contains(&c))
    }

    #[test]
    fn every_code_has_texts_of_its_own_with_all_that_they_name() {
        let mut titles = std::collections::HashSet::new();
        for code in Code::ALL {
            let names = code.members().iter().filter(|name| **name != "retry_after");
            let value = |name: &str| match name {
                "issue_from" | "issue_until" | "expired_at" | "sale_from" | "sale_until"
                | "hold_expires_at" => json!("2026-11-22T09:00:00.000Z"),
                "available" | "required" | "balance" | "limit" | "subtotal" | "total"
                | "issued" | "bought" | "requested" => {
                    json!(1_234_567)
                }
                _ => json!("a-value"),
            };
            let members: Vec<_> = names.map(|name| (*name, value(name))).collect();
            let detail = detail(*code, Members { members: &members, retry_after: Some(3) });
            assert!(is_korean(&detail) && !detail.contains('?'), "{code:?}: {detail}");
            assert!(detail.ends_with('.'), "{code:?}: {detail}");
            let title = title(*code);
            assert!(is_korean(title) && !title.ends_with('.'), "{code:?}: {title}");
            assert!(titles.insert(title), "{title} is there twice");
        }
    }

    #[test]
    fn numbers_and_times_are_written_as_in_korea() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(
            korean_time("2026-11-22T15:00:05.123Z").unwrap(),
            "2026년 11월 23일 00:00:05(한국 시각)"
        );
    }
}
