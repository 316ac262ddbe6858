//! How the worker is, as JSON.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use chrono::Utc;
use serde_json::{Value, json};

use super::Page;
use crate::upload::CrmHealth;
use crate::worker::{WorkerStatus, resident_bytes};

impl Page {
    /// What every page shows of the worker.
    pub(super) fn worker_now(&self) -> Value {
        let status = self.parts.status.borrow();
        let WorkerStatus {
            agent_name,
            worker_id,
            connection_problem,
            draining,
            active_jobs,
            inherited_calls,
            disk_problem,
            load,
        } = &*status;
        json!({
            "agent_name": agent_name,
            "registered": worker_id.is_some(),
            "worker_id": worker_id,
            "connection_problem": connection_problem,
            "draining": draining,
            "active_jobs": active_jobs,
            "inherited_calls": inherited_calls,
            "disk_problem": disk_problem,
            // Rounded to the precision of an f32.
            "load": (f64::from(*load) * 1e4).round() / 1e4,
            "slots": self.parts.slots,
            "not_ready": status.not_ready(),
        })
    }
}

/// `GET /page/api/worker`.
pub(super) async fn worker(State(page): State<Arc<Page>>) -> Result<Json<Value>, Response> {
    let store = page.parts.store.clone();
    let (free_bytes, waiting, memory) = page
        .read(move || {
            let waiting = store.pending().map(|records| records.len()).ok();
            (store.free_bytes().ok(), waiting, resident_bytes())
        })
        .await?;
    let mut worker = page.worker_now();
    let more = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "started": page.started,
        "now": Utc::now(),
        "livekit_host": page.parts.livekit_host,
        "data_dir": page.parts.store.root().display().to_string(),
        "disk_free_bytes": free_bytes,
        "disk_min_free_bytes": page.parts.storage.min_free_bytes(),
        "memory_bytes": memory,
        "records_waiting": waiting,
        "crm": page.parts.crm.as_ref().map(CrmHealth::now),
    });
    if let (Value::Object(worker), Value::Object(more)) = (&mut worker, more) {
        worker.extend(more);
    }
    Ok(Json(worker))
}
