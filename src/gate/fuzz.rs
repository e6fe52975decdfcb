//! Fuzzes the verdict parser with bytes that no script returns. It must return an error, not panic.

use proptest::prelude::*;

use super::verdict::Verdict;
use super::{ChargeRefusal, IssueRefusal, OrderRefusal};

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn noise_is_no_verdict_or_a_whole_one(noise in prop::collection::vec(any::<u8>(), 0..48), code in 0_u8..8) {
        for bytes in [noise.clone(), [&[0x92, code], noise.as_slice()].concat()] {
            if let Ok(Verdict::Accepted { fact, .. }) = rmp_serde::from_slice::<Verdict<'_, IssueRefusal>>(&bytes) {
                prop_assert!(bytes.len() > fact.0.len(), "a fact of more bytes than there were");
            }
            drop(rmp_serde::from_slice::<Vec<Verdict<'_, OrderRefusal>>>(&bytes));
            drop(rmp_serde::from_slice::<Vec<Verdict<'_, ChargeRefusal>>>(&bytes));
        }
        let alone = [0x91, code];
        let unknown = rmp_serde::from_slice::<Verdict<'_, IssueRefusal>>(&alone);
        prop_assert_eq!(unknown.is_ok(), matches!(code, 2 | 3));
    }
}
