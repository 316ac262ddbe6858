//! Commands to lines, from stdin.

use std::error::Error;

use roomserver::line::Lines;
use serde_json::json;
use tokio::sync::mpsc;

/// Carries out the command in each line of stdin, and prints as a line of JSON what was done under
/// the conditions before. Ends when stdin does.
pub async fn obey(lines: &Lines) -> Result<(), Box<dyn Error>> {
    // A thread reads them, because stdin cannot be read without blocking one.
    let (sender, mut orders) = mpsc::channel(1);
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    while let Some(order) = orders.recv().await {
        let before = lines.obey(&order)?;
        let done = json!({"done": order, "sent": before.sent, "lost": before.lost});
        println!("{done}");
    }
    Ok(())
}
