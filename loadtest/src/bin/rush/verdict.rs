//! The verdict on the shop, in words.

use std::fmt;

/// Statements, each with whether it is good.
#[derive(Default)]
pub struct Verdict {
    sentences: Vec<(bool, String)>,
}

impl Verdict {
    /// Adds a check: `so` if it is good, else `otherwise`.
    pub fn claim(&mut self, good: bool, so: impl Into<String>, otherwise: impl Into<String>) {
        self.sentences.push((good, if good { so.into() } else { otherwise.into() }));
    }

    /// Adds information that does not affect the verdict.
    pub fn tell(&mut self, sentence: impl Into<String>) {
        self.sentences.push((true, sentence.into()));
    }

    /// The statements, each with whether it is good.
    pub fn sentences(&self) -> &[(bool, String)] {
        &self.sentences
    }

    pub fn is_good(&self) -> bool {
        self.sentences.iter().all(|(good, _)| *good)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}",
            if self.is_good() {
                "The shop kept its promises:"
            } else {
                "The shop did NOT keep its promises:"
            }
        )?;
        for (good, sentence) in &self.sentences {
            writeln!(f, "  {} {sentence}", if *good { "✓" } else { "✗" })?;
        }
        Ok(())
    }
}
