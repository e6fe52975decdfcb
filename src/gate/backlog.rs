//! The requests that wait for a script's next call, and the choice of the next batch. Limits on
//! lines and bytes keep each call short, and cheap requests overtake expensive ones.
//!
//! [`Backlog`] has two rows. New requests enter `fresh`. A request that the script postpones
//! because of its cost moves to `heavy`; one that the call did not reach returns to the front of
//! `fresh`. Every call takes from both rows.

use std::collections::VecDeque;
use std::time::Instant;
use tokio::sync::mpsc;

use super::batcher::{BatchLimits, Job};
use super::refusal::GateError;
use crate::config::bounds::{BATCH_HELD_BYTES, BATCH_LINES};

/// The cost of a request within a call.
#[derive(Clone, Copy, Debug, Default)]
pub struct Weight {
    /// The lines of an order; 1 for every other request.
    pub lines: usize,
    /// The bytes of the user's coupons, as the script returned them (1 for a postponed read); 0 if
    /// unknown.
    pub held_bytes: usize,
}

/// Requests taken from the queue, in two rows.
pub struct Backlog {
    limits: BatchLimits,
    /// Requests not sent yet, or sent but not examined by the script.
    fresh: VecDeque<Job>,
    /// Requests that the script has postponed. They take at most half of a batch, so that others
    /// can overtake them.
    heavy: VecDeque<Job>,
}

impl Backlog {
    pub fn new(limits: BatchLimits) -> Self {
        Self { limits, fresh: VecDeque::new(), heavy: VecDeque::new() }
    }

    pub fn len(&self) -> usize {
        self.fresh.len() + self.heavy.len()
    }

    /// Moves queued requests into `fresh`, up to a batch. Waits for the queue only if the backlog
    /// is empty. Returns `false` when the queue is closed.
    pub async fn fill(&mut self, queue: &mut mpsc::Receiver<Job>) -> bool {
        if self.len() == 0 {
            let mut jobs = Vec::with_capacity(self.limits.batch);
            let came = queue.recv_many(&mut jobs, self.limits.batch).await;
            self.fresh.extend(jobs);
            return came > 0;
        }
        while self.fresh.len() < self.limits.batch
            && let Ok(job) = queue.try_recv()
        {
            self.fresh.push_back(job);
        }
        true
    }

    /// Refuses requests whose deadline has passed. Needed for reads only: deciding scripts check
    /// deadlines themselves.
    pub fn drop_late(&mut self, now: Instant) {
        for row in [&mut self.fresh, &mut self.heavy] {
            while let Some(job) = row.pop_front_if(|job| job.deadline < now) {
                job.answer(Err(GateError::Overloaded));
            }
        }
    }

    /// The requests of the next call. Drops abandoned requests, so the batch may be empty.
    pub fn next_batch(&mut self) -> Vec<Job> {
        let (mut batch, mut lines, mut held_bytes) = (Vec::new(), 0, 0);
        self.heavy.retain(|job| !job.is_abandoned());
        self.fresh.retain(|job| !job.is_abandoned());
        let most = self.limits.batch.div_ceil(2);
        while batch.len() < most
            && let Some(job) = self.heavy.pop_front_if(|job| {
                batch.is_empty()
                    || held_bytes + job.weight.held_bytes <= BATCH_HELD_BYTES
                        && lines + job.weight.lines <= BATCH_LINES
            })
        {
            lines += job.weight.lines;
            held_bytes += job.weight.held_bytes;
            batch.push(job);
        }
        while batch.len() < self.limits.batch
            && let Some(job) = self
                .fresh
                .pop_front_if(|job| batch.is_empty() || lines + job.weight.lines <= BATCH_LINES)
        {
            lines += job.weight.lines;
            batch.push(job);
        }
        batch
    }

    /// Takes back the postponed requests of a batch, in their order. `heavy` holds at most as many
    /// requests as the queue; the rest are refused.
    pub fn ask_again(&mut self, jobs: Vec<Job>) {
        let (heavy, fresh): (Vec<_>, Vec<_>) =
            jobs.into_iter().partition(|job| job.weight.held_bytes > 0);
        fresh.into_iter().rev().for_each(|job| self.fresh.push_front(job));
        for job in heavy {
            if self.heavy.len() < self.limits.queue {
                self.heavy.push_back(job);
            } else {
                job.answer(Err(GateError::Overloaded));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::batcher::QueueAnswer;
    use super::*;
    use tokio::sync::oneshot;

    type Told = oneshot::Receiver<QueueAnswer>;

    /// A backlog with batch size 4 and queue size 4, and jobs with these lines and held bytes. The
    /// body of each job is its index.
    fn backlog(weights: &[(usize, usize)]) -> (Backlog, Vec<Told>) {
        let mut backlog =
            Backlog::new(BatchLimits { queue: 4, batch: 4, log: 1, ..BatchLimits::default() });
        let (mut jobs, mut told) = (vec![], vec![]);
        for (n, (lines, held_bytes)) in (0..).zip(weights) {
            let weight = Weight { lines: *lines, held_bytes: *held_bytes };
            let (job, answer) = Job::for_tests(&[n], weight);
            jobs.push(job);
            told.push(answer);
        }
        backlog.ask_again(jobs);
        (backlog, told)
    }

    fn bodies(batch: &[Job]) -> Vec<u8> {
        batch.iter().map(|job| job.body[0]).collect()
    }

    #[test]
    fn a_batch_is_cut_by_lines_and_takes_at_least_one() {
        let (mut backlog, _told) =
            backlog(&[(BATCH_LINES + 1, 0), (BATCH_LINES, 0), (1, 0), (1, 0)]);
        assert_eq!(bodies(&backlog.next_batch()), [0]);
        assert_eq!(bodies(&backlog.next_batch()), [1]);
        assert_eq!(bodies(&backlog.next_batch()), [2, 3]);
        assert!(backlog.next_batch().is_empty());
    }

    #[test]
    fn those_that_were_put_off_take_half_of_a_batch_and_no_more_bytes_than_a_call_may() {
        let (mut heavy, _told) = backlog(&[(1, 9), (1, 9), (1, 9), (1, 0), (1, 0), (1, 0)]);
        assert_eq!(bodies(&heavy.next_batch()), [0, 1, 3, 4], "others pass");
        assert_eq!(bodies(&heavy.next_batch()), [2, 5]);
        let most = BATCH_HELD_BYTES;
        let (mut heavy, _told) = backlog(&[(1, most), (1, 1), (1, 0)]);
        assert_eq!(bodies(&heavy.next_batch()), [0, 2]);
        assert_eq!(bodies(&heavy.next_batch()), [1]);
    }

    #[test]
    fn who_is_put_off_again_keeps_the_order_and_no_more_wait_than_the_queue_takes() {
        let (mut heavy, mut told) = backlog(&[(1, 1), (1, 1), (1, 1), (1, 1), (1, 1)]);
        assert!(matches!(told.pop().unwrap().try_recv(), Ok(Err(GateError::Overloaded))));
        let batch = heavy.next_batch();
        assert_eq!(bodies(&batch), [0, 1]);
        heavy.ask_again(batch);
        assert_eq!(bodies(&heavy.next_batch()), [2, 3], "in turns");
        assert_eq!(bodies(&heavy.next_batch()), [0, 1]);
    }

    #[test]
    fn what_nobody_waits_for_is_not_asked_and_what_is_late_is_refused() {
        let (mut left, mut told) = backlog(&[(1, 0), (1, 9), (1, 0)]);
        told.remove(0);
        assert_eq!(left.len(), 3);
        assert_eq!(bodies(&left.next_batch()), [1, 2]);
        let (mut late, mut told) = backlog(&[(1, 0), (1, 9)]);
        late.drop_late(Instant::now() + std::time::Duration::from_secs(1));
        assert_eq!(late.len(), 0);
        assert!(
            told.iter_mut().all(|told| matches!(told.try_recv(), Ok(Err(GateError::Overloaded))))
        );
    }

    #[tokio::test]
    async fn the_queue_is_waited_for_only_where_there_is_nothing_to_do() {
        let (mut backlog, _told) = backlog(&[(1, 0)]);
        let (queue, mut jobs) = mpsc::channel(4);
        assert!(backlog.fill(&mut jobs).await, "it does not wait");
        let (job, _answer) = Job::for_tests(b"x", Weight::default());
        queue.try_send(job).unwrap();
        assert!(backlog.fill(&mut jobs).await && backlog.len() == 2);
        backlog.next_batch();
        drop(queue);
        assert!(!backlog.fill(&mut jobs).await, "the queue has ended");
    }
}
