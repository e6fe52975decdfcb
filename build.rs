//! `sqlx::migrate!` reads the folder when it is expanded: a new file in it must expand it again.

fn main() {
    println!("cargo:rerun-if-changed=migrations");
}
