//! `exec`: a program says whether a server works, by its exit code (keepalived.conf(5), MISC_CHECK): 0 is good, 1 is bad,
//! and where it sets the weight 2 to 255 are good and mean a weight of so much less 2.

use super::{Asked, Asking, Bad, Good, Outcome, Probe};
use crate::control::health::spec::ExecSpec;
use crate::control::health::transport::Connect;
use crate::io::program::{Ended, Privileges, Program};

pub struct Exec(pub ExecSpec);

impl Exec {
    async fn run(&self, asked: &Asked) -> Outcome {
        let address = asked.target.address;
        let mut environment =
            vec![("GATUN_ADDRESS", address.ip().to_string()), ("GATUN_PORT", address.port().to_string())];
        if let Some(whose) = &asked.whose {
            environment.extend([
                ("GATUN_SERVICE", whose.service.clone()),
                ("GATUN_SERVER", whose.server.clone()),
                ("GATUN_VIP", whose.vip.to_string()),
                ("GATUN_VIP_PORT", whose.vip_port.map(|port| port.to_string()).unwrap_or_default()),
            ]);
        }
        let program = Program { command: &self.0.command.0, environment: &environment, privileges: Privileges::None };
        // No program, no answer: it is the gateway's file system that lacks it.
        let ended = program.run().await.map_err(|error| Bad::Ours(format!("{}: {error}", self.0.command.0[0])))?;
        tracing::debug!(command = ?self.0.command.0, ?ended, "a check's program ended");
        self.judge(&ended)
    }

    fn judge(&self, ended: &Ended) -> Outcome {
        match ended.code {
            Some(0) => Ok(Good::said("exit code 0")),
            Some(code @ 2..=255) if self.0.sets_weight => {
                Ok(Good { said: format!("exit code {code}"), weight: u32::try_from(code - 2).ok() })
            }
            Some(code) => Err(Bad::Server(format!("exit code {code}"))),
            None => Err(Bad::Server("it was killed".to_owned())),
        }
    }
}

impl Probe for Exec {
    fn ask<'a>(&'a self, asked: &'a Asked, _: &'a dyn Connect) -> Asking<'a> {
        Box::pin(self.run(asked))
    }
}
