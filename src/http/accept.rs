//! Content negotiation by lists with qualities (RFC 9110, 12.4.2): `Accept-Encoding`,
//! `Accept-Language`.

use axum::http::header::ACCEPT_LANGUAGE;
use axum::http::{HeaderMap, HeaderName};

/// The languages of texts for people.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Language {
    #[default]
    English,
    Korean,
}

impl Language {
    /// The one that the client prefers; English if it names neither.
    pub fn of(headers: &HeaderMap) -> Self {
        let Some(ranges) = elements(headers, ACCEPT_LANGUAGE) else { return Self::English };
        // The place in the list decides between equal qualities.
        let (mut korean, mut english, mut any) = (None, None, None);
        for (place, (range, quality)) in ranges.enumerate() {
            let primary = range.split('-').next().unwrap_or_default();
            let found = match primary {
                _ if primary.eq_ignore_ascii_case("ko") => &mut korean,
                _ if primary.eq_ignore_ascii_case("en") => &mut english,
                "*" => &mut any,
                _ => continue,
            };
            let rank = (quality, usize::MAX - place);
            if found.is_none_or(|best| best < rank) {
                *found = Some(rank);
            }
        }
        let rank = |named: Option<(u16, usize)>| named.or(any).filter(|(quality, _)| *quality > 0);
        if rank(korean) > rank(english) { Self::Korean } else { Self::English }
    }

    pub fn tag(self) -> &'static str {
        match self {
            Self::English => "en",
            Self::Korean => "ko",
        }
    }
}

/// The elements of a list header with their qualities, in thousandths. An element that cannot be
/// read has the quality 0. `None`: the header is absent.
pub fn elements(
    headers: &HeaderMap,
    name: HeaderName,
) -> Option<impl Iterator<Item = (&str, u16)>> {
    let mut lines = headers.get_all(name).iter().peekable();
    lines.peek()?;
    let texts = lines.filter_map(|line| line.to_str().ok());
    let elements = texts.flat_map(|line| line.split(',')).take(MOST).map(|element| {
        let (value, parameters) = element.split_once(';').unwrap_or((element, ""));
        (value.trim(), quality(parameters.trim()))
    });
    Some(elements.filter(|(value, _)| !value.is_empty()))
}

/// Elements that are read at most.
const MOST: usize = 32;

/// In thousandths.
fn quality(parameter: &str) -> u16 {
    let Some((name, value)) = parameter.split_once('=') else {
        return if parameter.is_empty() { 1_000 } else { 0 };
    };
    let value: f32 = value.trim().parse().unwrap_or(0.0);
    let known = name.trim().eq_ignore_ascii_case("q") && (0.0..=1.0).contains(&value);
    if known { (value * 1_000.0).round() as u16 } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn language(lines: &[&str]) -> &'static str {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(ACCEPT_LANGUAGE, line.parse().unwrap());
        }
        Language::of(&headers).tag()
    }

    #[test]
    fn the_language_is_the_one_that_is_preferred() {
        for korean in [
            "ko",
            "KO-kr",
            "ko-KR,ko;q=0.9,en-US;q=0.8,en;q=0.7",
            "en;q=0.5, ko;q=0.6",
            "fr, ko;q=0.1",
            "en;q=0, *",
            "ko, en",
            "ko;q=0.001",
        ] {
            assert_eq!(language(&[korean]), "ko", "{korean}");
        }
        for english in [
            "",
            "en",
            "*",
            "fr",
            "en, ko",
            "en-US,en;q=0.9,ko;q=0.8",
            "ko;q=0",
            "ko;q=0.5, *;q=0.8",
            "kok",
            "ko;q=2",
            "ko;level=1",
            ";;,;q=1,=",
        ] {
            assert_eq!(language(&[english]), "en", "{english}");
        }
        assert_eq!(language(&[]), "en");
        assert_eq!(language(&["fr", "ko;q=0.5"]), "ko", "two lines are one list");
    }
}
