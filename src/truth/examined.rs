//! Pages of filtered lists. A filter that few rows pass must not turn one page into a scan of the
//! whole table: a page examines a bounded number of rows at a time, and ends when its time is over.

use std::time::Instant;

use crate::config::bounds::EXAMINING_TIME;

/// The rows found for a page.
#[derive(Debug)]
pub struct Examined<T, P> {
    /// At most as many as were asked for.
    pub found: Vec<T>,
    /// The last place examined, if fewer were found and more may follow.
    pub go_on_after: Option<P>,
}

/// A page while it is examined part by part, each part from where the one before ended.
#[derive(Debug)]
pub struct Examining<T, P> {
    page: Examined<T, P>,
    limit: usize,
    began: Instant,
    ended: bool,
}

impl<T, P: Copy> Examining<T, P> {
    pub fn new(after: Option<P>, limit: usize) -> Self {
        let page = Examined { found: Vec::new(), go_on_after: after };
        Self { page, limit, began: Instant::now(), ended: false }
    }

    /// Where the next part begins, and how many rows are still wanted; `None`: the page is full,
    /// the list or the time has ended.
    pub fn next_part(&self) -> Option<(Option<P>, usize)> {
        (!self.ended).then(|| (self.page.go_on_after, self.limit - self.page.found.len()))
    }

    /// `go_on_after`: where a part ended that found fewer rows than were wanted; `None`: nothing
    /// follows it.
    pub fn add(&mut self, found: Vec<T>, go_on_after: Option<P>) {
        self.page.found.extend(found);
        self.page.go_on_after = go_on_after.filter(|_| self.page.found.len() < self.limit);
        self.ended = self.page.go_on_after.is_none() || self.began.elapsed() > EXAMINING_TIME;
    }

    pub fn page(self) -> Examined<T, P> {
        self.page
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Multiples of `step`, of which 10 numbers are examined at a time.
    fn multiples(step: u64, limit: usize, most: u64, pause_ms: u64) -> (Vec<u64>, Option<u64>) {
        let mut examining = Examining::new(None, limit);
        while let Some((after, limit)) = examining.next_part() {
            std::thread::sleep(std::time::Duration::from_millis(pause_ms));
            let from = after.unwrap_or(0) + 1;
            let end = (from + 9).min(most);
            let found: Vec<u64> = (from..=end).filter(|n| n % step == 0).take(limit).collect();
            let go_on_after = (found.len() < limit && end < most).then_some(end);
            examining.add(found, go_on_after);
        }
        let page = examining.page();
        (page.found, page.go_on_after)
    }

    #[test]
    fn parts_are_examined_until_the_page_is_full_or_the_list_ends() {
        assert_eq!(multiples(15, 4, 1_000, 0), (vec![15, 30, 45, 60], None));
        assert_eq!(multiples(15, 4, 50, 0), (vec![15, 30, 45], None));
    }

    #[test]
    fn a_page_ends_when_its_time_is_over() {
        assert_eq!(multiples(10_000, 4, 100_000, 160), (vec![], Some(20)));
    }
}
