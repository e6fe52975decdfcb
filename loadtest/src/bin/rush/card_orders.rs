//! What users of the scenario `checkout` know of the orders that they pay by card.

use std::collections::HashMap;
use std::time::Instant;

/// The state that an order must have in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    Paid,
    Cancelled,
    Expired,
    /// The user's last change got no clear answer.
    Unknown,
}

/// What users read in the answers to orders that they pay by card.
#[derive(Clone, Debug, Default)]
pub struct CardOrders {
    /// How each order must end, by its id.
    pub endings: HashMap<String, Ending>,
    /// Payments that come too late, and how many of them were refused with `hold-expired`.
    pub late: u64,
    pub late_refused: u64,
    /// Other answers to payments that came too late.
    pub late_others: Vec<String>,
    /// When the last hold ends that nobody will pay in time.
    pub last_hold_ends: Option<Instant>,
    /// How far this machine's clock is ahead of the gate's, in ms: at least this much. Negative if
    /// it is behind, or if no order came through at once.
    pub clock_ahead_ms: Option<i64>,
}

impl CardOrders {
    /// Notes how the user left an order whose hold ends at the latest at this moment.
    pub fn left(&mut self, id: &str, hold_ends: Instant, ending: Ending) {
        self.endings.insert(id.to_owned(), ending);
        if matches!(ending, Ending::Expired | Ending::Unknown) {
            self.last_hold_ends = self.last_hold_ends.max(Some(hold_ends));
        }
    }
}
