//! The terms that coupons were issued with last, by template. Terms with coupons never change, so what
//! is remembered stays true as long as its epoch lasts.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};

use crate::config::bounds::TERMS_REMEMBERED;
use crate::domain::Discount;

/// Epoch, and the number of the terms as the fact has it.
type Of = (u64, Option<u64>);
/// Discount and minimum subtotal.
type Terms = (Discount, u64);

#[derive(Default)]
pub(super) struct TermsMemory(RwLock<HashMap<String, (Of, Terms)>>);

impl TermsMemory {
    pub(super) fn find(&self, template_id: &str, of: Of) -> Option<Terms> {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        known.get(template_id).filter(|(known, _)| *known == of).map(|(_, terms)| *terms)
    }

    pub(super) fn remember(&self, template_id: &str, of: Of, terms: Terms) {
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= TERMS_REMEMBERED && !known.contains_key(template_id) {
            known.clear();
        }
        known.insert(template_id.to_owned(), (of, terms));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms_of_another_number_or_epoch_are_not_known() {
        let (memory, terms) = (TermsMemory::default(), (Discount::Amount { value: 500 }, 0));
        memory.remember("t", (1, Some(2)), terms);
        assert_eq!(memory.find("t", (1, Some(2))), Some(terms));
        assert_eq!(memory.find("t", (1, None)), None);
        assert_eq!(memory.find("t", (2, Some(2))), None);
        assert_eq!(memory.find("u", (1, Some(2))), None);
    }

    #[test]
    fn it_does_not_grow_without_bound() {
        let (memory, terms) = (TermsMemory::default(), (Discount::Amount { value: 500 }, 0));
        for n in 0..=TERMS_REMEMBERED {
            memory.remember(&n.to_string(), (1, None), terms);
        }
        assert_eq!(memory.find("0", (1, None)), None);
        assert!(memory.find(&TERMS_REMEMBERED.to_string(), (1, None)).is_some());
    }
}
