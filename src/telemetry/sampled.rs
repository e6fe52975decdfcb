//! The text that sampling writes and `/metrics` serves.

use std::sync::{Mutex, PoisonError};

/// The text of the latest round.
#[derive(Default)]
pub struct Sampled(Mutex<String>);

impl Sampled {
    pub fn text(&self) -> String {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn replace(&self, text: String) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = text;
    }
}
