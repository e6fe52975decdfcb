//! Proof by history: what clients asked and were told, what the log says, what PostgreSQL and the queue hold, compared
//! with a model of the shop.

pub mod model;
