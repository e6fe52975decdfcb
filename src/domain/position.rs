//! Positions in the logs of cells.

/// A position in a cell's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    pub cell: u32,
    pub epoch: u64,
    pub seq: u64,
}
