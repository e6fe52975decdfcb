//! What each refusal means and what a client does about it, in English and Korean: one table for the
//! pages under `/problems/`, with which docs/errors.md and docs/ko/errors.md agree.
//!
//! Texts are Markdown with `code` and **strong** only.

use super::accept::Language;
use super::problem::Code;

/// A text in English and in Korean.
pub type Text = [&'static str; 2];

pub fn in_language(text: Text, language: Language) -> &'static str {
    match language {
        Language::English => text[0],
        Language::Korean => text[1],
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Explanation {
    pub meaning: Text,
    pub action: Text,
}

/// Whether the same request may be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// It can succeed only after something has changed.
    Pointless,
    /// It changed nothing.
    Safe,
    /// It may have been executed.
    WithKey,
}

impl Retry {
    pub fn of(code: Code) -> Self {
        match (code, code.status().as_u16()) {
            (Code::OutcomeUnknown | Code::InternalError, _) => Self::WithKey,
            (_, 408 | 429 | 503) => Self::Safe,
            _ => Self::Pointless,
        }
    }

    pub fn text(self) -> Text {
        match self {
            Self::Pointless => [
                "Not as it is: something has to change first. The request changed nothing.",
                "그대로는 다시 보내지 마십시오. 먼저 무언가 달라져야 합니다. 이 요청은 아무것도 변경하지 않았습니다.",
            ],
            Self::Safe => [
                "Yes, after the seconds that `Retry-After` names, if it is there. The request changed nothing.",
                "다시 보내도 됩니다. `Retry-After`가 있으면 그만큼 기다립니다. 이 요청은 아무것도 변경하지 않았습니다.",
            ],
            Self::WithKey => [
                "Only with the same `Idempotency-Key`. Without one, look whether it was done before you repeat it.",
                "같은 `Idempotency-Key`가 있을 때만 다시 보냅니다. 키가 없었다면 먼저 조회하여 처리되었는지 확인합니다.",
            ],
        }
    }
}

/// What an extra member of a problem says; `None`: there is no such member.
pub fn member(name: &str) -> Option<Text> {
    Some(match name {
        "field" => [
            "the member, parameter or header at fault; empty: the whole body",
            "잘못된 멤버, 매개변수 또는 헤더. 비어 있으면 본문 전체",
        ],
        "reason" => [
            "`missing`, `expired` or `invalid`",
            "`missing`(없음), `expired`(만료), `invalid`(유효하지 않음)",
        ],
        "product_id" => ["the product", "상품"],
        "template_id" => ["the coupon template", "쿠폰 템플릿"],
        "coupon_id" => ["the coupon", "쿠폰"],
        "available" => ["pieces that there are", "남은 수량"],
        "required" => ["what is needed: pieces, or won", "필요한 수량 또는 금액(원)"],
        "balance" => ["what the wallet holds, in won", "지갑의 잔액(원)"],
        "limit" => ["the limit", "한도"],
        "bought" => ["pieces that the user has bought", "사용자가 이미 구매한 수량"],
        "requested" => ["pieces of the product in this order", "이 주문의 수량"],
        "sale_from" => ["when the sale begins", "판매가 시작되는 시각"],
        "sale_until" => ["when the sale ended", "판매가 끝난 시각"],
        "hold_expires_at" => ["until when the order was held", "주문을 잡아 둔 시한"],
        "payment_reference" => {
            ["the payment that the order was confirmed with", "주문을 확정한 결제"]
        }
        "subtotal" => ["the order's subtotal, in won", "할인 전 주문 금액(원)"],
        "total" => ["the order's total as it is now, in won", "현재 주문 금액(원)"],
        "issued" => ["coupons issued so far", "지금까지 발급된 쿠폰 수"],
        "issue_from" => ["when coupons will be issued", "쿠폰 발급이 시작되는 시각"],
        "issue_until" => ["until when coupons were issued", "쿠폰 발급이 끝난 시각"],
        "expired_at" => ["when the coupon expired", "쿠폰이 만료된 시각"],
        "retry_after" => [
            "seconds to wait, as in the header `Retry-After`",
            "기다릴 시간(초). `Retry-After` 헤더와 같습니다",
        ],
        _ => return None,
    })
}

pub fn explanation(code: Code) -> Explanation {
    match code {
        Code::MalformedRequest => Explanation {
            meaning: [
                "the path, query, headers or body cannot be read",
                "경로, 쿼리, 헤더, 본문 중 읽을 수 없는 것이 있습니다",
            ],
            action: ["correct the request", "요청을 수정합니다"],
        },
        Code::Unauthenticated => Explanation {
            meaning: [
                "the token is missing, expired, forged or of another algorithm",
                "토큰이 없거나, 만료되었거나, 위조되었거나, 알고리즘이 다릅니다",
            ],
            action: ["get a new token", "새 토큰을 받습니다"],
        },
        Code::Forbidden => Explanation {
            meaning: ["the token's scope does not allow this", "토큰의 스코프로는 할 수 없습니다"],
            action: ["use a token with the scope", "맞는 스코프의 토큰을 씁니다"],
        },
        Code::ProductNotFound => Explanation {
            meaning: ["no such product", "해당 상품이 없습니다"],
            action: ["remove it from the basket", "장바구니에서 뺍니다"],
        },
        Code::CouponTemplateNotFound => Explanation {
            meaning: ["no such template", "해당 템플릿이 없습니다"],
            action: ["correct the id", "id를 확인합니다"],
        },
        Code::CouponNotFound => Explanation {
            meaning: [
                "no such coupon, or it belongs to another user",
                "해당 쿠폰이 없거나 다른 사람의 쿠폰입니다",
            ],
            action: ["order without it", "쿠폰 없이 주문합니다"],
        },
        Code::OrderNotFound => Explanation {
            meaning: [
                "no such order, or it belongs to another user",
                "해당 주문이 없거나 다른 사람의 주문입니다",
            ],
            action: ["correct the id", "id를 확인합니다"],
        },
        Code::UserNotFound => Explanation {
            meaning: [
                "the token may not act for this user",
                "이 토큰으로는 그 사용자를 대신할 수 없습니다",
            ],
            action: [
                "use this user's token, or one with scope `service`",
                "그 사용자의 토큰이나 스코프 `service`의 토큰을 씁니다",
            ],
        },
        Code::RouteNotFound => Explanation {
            meaning: ["no such path", "해당 경로가 없습니다"],
            action: ["see `/docs`", "`/docs`를 봅니다"],
        },
        Code::MethodNotAllowed => Explanation {
            meaning: [
                "the path does not have this method",
                "해당 경로에서 지원하지 않는 메서드입니다",
            ],
            action: ["see the header `Allow`", "`Allow` 헤더를 봅니다"],
        },
        Code::RequestTimeout => Explanation {
            meaning: ["the body arrived too slowly", "본문이 제한 시간 안에 도착하지 않았습니다"],
            action: ["send it again", "다시 보냅니다"],
        },
        Code::SoldOut => Explanation {
            meaning: [
                "all coupons of the template are issued",
                "템플릿의 쿠폰이 모두 발급되었습니다",
            ],
            action: [
                "tell the user; do not retry in a loop",
                "사용자에게 알립니다. 반복해서 재시도하지 않습니다",
            ],
        },
        Code::AlreadyIssued => Explanation {
            meaning: [
                "the user has this template's coupon; `coupon_id` names it",
                "사용자가 이미 이 템플릿의 쿠폰을 가지고 있습니다. 쿠폰 id는 `coupon_id`입니다",
            ],
            action: ["treat it as success", "성공으로 처리합니다"],
        },
        Code::IssuanceNotOpen => Explanation {
            meaning: ["the issuing window has not opened", "발급 기간이 아직 시작되지 않았습니다"],
            action: ["come back at `issue_from`", "`issue_from`에 다시 시도합니다"],
        },
        Code::IssuanceClosed => Explanation {
            meaning: ["the issuing window has closed", "발급 기간이 끝났습니다"],
            action: ["tell the user", "사용자에게 알립니다"],
        },
        Code::InsufficientStock => Explanation {
            meaning: [
                "less in stock than ordered; `available` says how many",
                "요청한 수량보다 적게 남았습니다. 남은 수는 `available`입니다",
            ],
            action: ["order fewer, or leave it out", "수량을 줄이거나 상품을 뺍니다"],
        },
        Code::InsufficientBalance => Explanation {
            meaning: ["the wallet holds less than `required`", "잔액이 `required`보다 적습니다"],
            action: ["charge it, then order again", "충전하고 다시 주문합니다"],
        },
        Code::BalanceLimitExceeded => Explanation {
            meaning: [
                "the charge or refund would lift the wallet over 1,000,000 won",
                "충전이나 환불로 잔액이 1,000,000원을 넘게 됩니다",
            ],
            action: [
                "charge less; spend before cancelling",
                "충전 금액을 줄이거나, 취소하기 전에 잔액을 사용합니다",
            ],
        },
        Code::ProductNotOnSale => Explanation {
            meaning: ["the product is suspended", "판매가 중지된 상품입니다"],
            action: ["leave it out", "상품을 뺍니다"],
        },
        Code::SaleNotOpen => Explanation {
            meaning: ["the product's sale has not begun", "상품의 판매가 아직 시작되지 않았습니다"],
            action: ["come back at `sale_from`", "`sale_from`에 다시 시도합니다"],
        },
        Code::SaleEnded => Explanation {
            meaning: ["the product's sale is over", "상품의 판매가 끝났습니다"],
            action: ["leave it out", "상품을 뺍니다"],
        },
        Code::PurchaseLimitExceeded => Explanation {
            meaning: [
                "with this order the user would have bought more pieces than one user may: `limit`",
                "이 주문까지 합하면 한 사람이 살 수 있는 수량 `limit`을 넘습니다",
            ],
            action: [
                "order fewer; `bought` says how many the user has",
                "수량을 줄입니다. 이미 구매한 수량은 `bought`입니다",
            ],
        },
        Code::TooManyPending => Explanation {
            meaning: [
                "too many of the user's orders wait for a payment",
                "결제를 기다리는 주문이 너무 많습니다",
            ],
            action: ["pay or cancel one of them first", "그중 하나를 먼저 결제하거나 취소합니다"],
        },
        Code::HoldExpired => Explanation {
            meaning: [
                "the order was not paid before `hold_expires_at`, and what it held is given back",
                "`hold_expires_at`까지 결제되지 않아, 주문이 잡아 둔 것을 모두 돌려놓았습니다",
            ],
            action: [
                "give back what was paid outside; order again",
                "외부에서 결제된 금액을 환불하고 다시 주문합니다",
            ],
        },
        Code::AlreadyConfirmed => Explanation {
            meaning: [
                "the order is paid already, with another payment or from the wallet",
                "다른 결제로, 또는 지갑에서 이미 결제된 주문입니다",
            ],
            action: [
                "if both payments were made, give one back",
                "둘 다 결제되었다면 하나를 환불합니다",
            ],
        },
        Code::OrderCancelled => Explanation {
            meaning: ["the order is cancelled", "취소된 주문입니다"],
            action: ["give back what was paid outside", "외부에서 결제된 금액을 환불합니다"],
        },
        Code::CouponNotAvailable => Explanation {
            meaning: ["the coupon is used", "이미 사용한 쿠폰입니다"],
            action: ["order without it", "쿠폰 없이 주문합니다"],
        },
        Code::CouponExpired => Explanation {
            meaning: [
                "365 days have passed since the coupon was issued",
                "발급 후 365일이 지났습니다",
            ],
            action: ["order without it", "쿠폰 없이 주문합니다"],
        },
        Code::SubtotalTooLow => Explanation {
            meaning: [
                "the order is below the coupon's minimum",
                "쿠폰의 최소 주문 금액보다 적습니다",
            ],
            action: ["order more, or without the coupon", "더 주문하거나 쿠폰을 뺍니다"],
        },
        Code::PriceChanged => Explanation {
            meaning: [
                "the total differs from your `expected_total`",
                "총액이 `expected_total`과 다릅니다",
            ],
            action: ["show the new `total`, ask again", "새 `total`을 보여 주고 다시 묻습니다"],
        },
        Code::StockBelowZero => Explanation {
            meaning: [
                "staff take out more than is in stock",
                "운영자가 현재 재고보다 많이 줄이려 했습니다",
            ],
            action: ["take out less", "줄이는 수량을 낮춥니다"],
        },
        Code::LimitBelowIssued => Explanation {
            meaning: [
                "staff set a limit below the number already issued",
                "운영자가 이미 발급된 수보다 낮은 한도를 지정했습니다",
            ],
            action: ["choose at least `issued`", "`issued` 이상으로 지정합니다"],
        },
        Code::BodyTooLarge => Explanation {
            meaning: ["the body is larger than 16 KiB", "16 KiB를 넘었습니다"],
            action: ["send less", "줄여서 보냅니다"],
        },
        Code::UnsupportedMediaType => Explanation {
            meaning: ["the body is not JSON", "본문이 JSON이 아닙니다"],
            action: [
                "send `Content-Type: application/json`",
                "`Content-Type: application/json`으로 보냅니다",
            ],
        },
        Code::InvalidField => Explanation {
            meaning: [
                "a value breaks a rule; `field` names it",
                "규칙에 어긋나는 값이 있습니다. 필드 이름은 `field`입니다",
            ],
            action: ["correct the value", "값을 수정합니다"],
        },
        Code::IdempotencyKeyReused => Explanation {
            meaning: [
                "the key belongs to another request",
                "그 키는 다른 요청에 이미 사용되었습니다",
            ],
            action: ["make a new key for each new request", "새 요청에는 새 키를 사용합니다"],
        },
        Code::RateLimited => Explanation {
            meaning: [
                "this user or address sends more than `RateLimit-Policy` allows, or this user has used too many keys today",
                "이 사용자나 이 주소가 `RateLimit-Policy`의 한도보다 많이 보냈거나, 이 사용자가 오늘 키를 너무 많이 사용했습니다",
            ],
            action: [
                "wait for `Retry-After`; `RateLimit` says what is left",
                "`Retry-After`만큼 기다립니다. 남은 한도는 `RateLimit`에 있습니다",
            ],
        },
        Code::InternalError => Explanation {
            meaning: ["a defect of Rushgate", "Rushgate 내부 오류입니다"],
            action: [
                "repeat with the same `Idempotency-Key`; report it",
                "같은 `Idempotency-Key`로 재시도하고, 결함으로 알려 주십시오",
            ],
        },
        Code::GateUnavailable => Explanation {
            meaning: [
                "Redis is away, or the cell is closed or being rebuilt",
                "Redis에 연결할 수 없거나, 셀이 닫혔거나 재구축 중입니다",
            ],
            action: ["retry after `Retry-After`", "`Retry-After` 뒤에 재시도합니다"],
        },
        Code::Overloaded => Explanation {
            meaning: [
                "too many requests wait, or this one waited too long",
                "대기 중인 요청이 너무 많거나, 이 요청이 너무 오래 대기했습니다",
            ],
            action: [
                "retry after `Retry-After`, with growing pauses",
                "`Retry-After` 뒤에, 간격을 늘려 가며 재시도합니다",
            ],
        },
        Code::BacklogFull => Explanation {
            meaning: [
                "PostgreSQL is too far behind the gate",
                "PostgreSQL이 게이트보다 너무 뒤처져 있습니다",
            ],
            action: [
                "retry later; operators: see `/v1/admin/status`",
                "나중에 재시도합니다. 운영자는 `/v1/admin/status`를 봅니다",
            ],
        },
        Code::OutcomeUnknown => Explanation {
            meaning: [
                "**the request may or may not have been executed**",
                "**처리되었을 수도, 아닐 수도 있습니다**",
            ],
            action: [
                "repeat with the same `Idempotency-Key`; without one, look before you repeat",
                "같은 `Idempotency-Key`로 재시도합니다. 키가 없었다면 재시도하기 전에 조회하여 확인합니다",
            ],
        },
        Code::TruthUnavailable => Explanation {
            meaning: [
                "PostgreSQL does not answer, or not in time",
                "PostgreSQL이 응답하지 않거나 제한 시간 안에 응답하지 않았습니다",
            ],
            action: ["retry after `Retry-After`", "`Retry-After` 뒤에 재시도합니다"],
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_member_of_a_problem_is_explained() {
        for code in Code::ALL {
            for name in code.members().iter().chain(code.optional_members()) {
                assert!(member(name).is_some(), "{code:?}: {name}");
            }
        }
    }
}
